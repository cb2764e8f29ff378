"""`PrefetchedFeatures`: features on the device, until a step takes them."""

from __future__ import annotations

from vitcache._native import StepPlan
from vitcache.pipeline import step_item
from vitcache.pipeline.feature_mover import MovedFeature

# None: an item without a key, which has no prefetched feature.
Identity = step_item.Identity | None

MAX_BYTES = 256 << 20


class PrefetchedFeatures:
    """Moved features by item, up to about `max_bytes` bytes. Any thread may call any method.

    No method takes a lock, and each change is one operation of a dict: a signal handler may call `drop` or
    `clear` while its thread is in another method.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._features: dict[Identity, tuple[MovedFeature, object]] = {}
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        """Return the number of features."""
        return len(self._features)

    def __contains__(self, item: Identity) -> bool:
        return item in self._features

    @property
    def num_bytes(self) -> int:
        """Bytes of all features."""
        return sum(moved.tensor.nbytes for moved, _ in list(self._features.values()))

    def make_room(self, owner: object) -> bool:
        """Remove the oldest features of other owners until one more may be added.

        The last feature may exceed the limit. A feature whose step began before it was added is never taken.

        Returns
        -------
        bool
            False if the features of `owner` alone reach the limit.
        """
        while self.num_bytes >= self._max_bytes:
            features = list(self._features.items())
            oldest = [item for item, (_, feature_owner) in features if feature_owner is not owner][:1]
            if not oldest:
                return False
            self.take(oldest[0])
        return True

    def add(self, item: Identity, moved: MovedFeature, owner: object) -> None:
        """Store an item's feature until a step takes it or `owner` drops it. Ignores a second feature."""
        self._features.setdefault(item, (moved, owner))

    def take(self, item: Identity) -> MovedFeature | None:
        """Remove and return an item's feature, or return None."""
        moved, _ = self._features.pop(item, (None, None))
        return moved

    def find_in(self, plan: StepPlan) -> list[int]:
        """Return the numbers of the plan's items whose features are here."""
        found = []
        for identity in list(self._features):
            number = None if identity is None else plan.find(*identity)
            if number is not None:
                found.append(number)
        return found

    def drop(self, owner: object) -> None:
        """Remove all features that `owner` added."""
        for item, (_, feature_owner) in list(self._features.items()):
            if feature_owner is owner:
                self.take(item)

    def clear(self) -> None:
        """Remove all features."""
        self._features.clear()
