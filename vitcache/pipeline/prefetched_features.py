"""Features that were moved to the device before the step that encodes them."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from vitcache.pipeline.feature_mover import MovedFeature

MOST_BYTES = 256 << 20


class PrefetchedFeatures:
    """MovedFeature features by item, in about `most_bytes`. Any thread may call."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._features: dict[Hashable, tuple[MovedFeature, object]] = {}
        self._bytes_left = most_bytes
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of features that wait."""
        return len(self._features)

    def __contains__(self, item: Hashable) -> bool:
        return item in self._features

    @property
    def has_room(self) -> bool:
        """Whether one more feature may be added: the last one may go beyond the limit."""
        return self._bytes_left > 0

    def add(self, item: Hashable, moved: MovedFeature, owner: object) -> None:
        """Keep an item's feature for the step that takes it, or until its owner drops it."""
        with self._lock:
            if item not in self._features:
                self._features[item] = moved, owner
                self._bytes_left -= moved.tensor.nbytes

    def take(self, item: Hashable) -> MovedFeature | None:
        """Take an item's feature out, if it is there."""
        if item not in self._features:
            return None
        with self._lock:
            moved, _ = self._features.pop(item, (None, None))
            if moved is not None:
                self._bytes_left += moved.tensor.nbytes
            return moved

    def drop(self, owner: object) -> None:
        """Take out all that one owner added."""
        for item, (_, its_owner) in list(self._features.items()):
            if its_owner is owner:
                self.take(item)

    def clear(self) -> None:
        """Take out everything."""
        for item in list(self._features):
            self.take(item)
