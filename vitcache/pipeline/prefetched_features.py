"""`PrefetchedFeatures`: features on the device, until a step takes them."""

from __future__ import annotations

from vitcache._native import StepPlan
from vitcache.device.locks import new_lock
from vitcache.pipeline import step_item
from vitcache.pipeline.feature_mover import MovedFeature

# None: an item without a key, which has no prefetched feature.
Identity = step_item.Identity | None

MAX_BYTES = 256 << 20


class PrefetchedFeatures:
    """Moved features by item, up to about `max_bytes` bytes. Any thread may call any method."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._features: dict[Identity, tuple[MovedFeature, object]] = {}
        self._free_bytes = max_bytes
        self._lock = new_lock()

    def __len__(self) -> int:
        """Return the number of features."""
        return len(self._features)

    def __contains__(self, item: Identity) -> bool:
        return item in self._features

    @property
    def has_free_bytes(self) -> bool:
        """Whether one more feature may be added. The last feature may exceed the limit."""
        return self._free_bytes > 0

    def add(self, item: Identity, moved: MovedFeature, owner: object) -> None:
        """Store an item's feature until a step takes it or `owner` drops it. Ignores a second feature."""
        with self._lock:
            if item not in self._features:
                self._features[item] = moved, owner
                self._free_bytes -= moved.tensor.nbytes

    def take(self, item: Identity) -> MovedFeature | None:
        """Remove and return an item's feature, or return None."""
        if item not in self._features:
            return None
        with self._lock:
            moved, _ = self._features.pop(item, (None, None))
            if moved is not None:
                self._free_bytes += moved.tensor.nbytes
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
        for item in list(self._features):
            self.take(item)
