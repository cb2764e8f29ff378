"""`PrefetchedFeatures`: features on the device, until a step takes them."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from vitcache.pipeline.feature_mover import MovedFeature

MAX_BYTES = 256 << 20


class PrefetchedFeatures:
    """Moved features by item, up to about `max_bytes` bytes. Any thread may call any method."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._features: dict[Hashable, tuple[MovedFeature, object]] = {}
        self._free_bytes = max_bytes
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of features."""
        return len(self._features)

    def __contains__(self, item: Hashable) -> bool:
        return item in self._features

    @property
    def has_free_bytes(self) -> bool:
        """Whether one more feature may be added. The last feature may exceed the limit."""
        return self._free_bytes > 0

    def add(self, item: Hashable, moved: MovedFeature, owner: object) -> None:
        """Store an item's feature until a step takes it or `owner` drops it. Ignores a second feature."""
        with self._lock:
            if item not in self._features:
                self._features[item] = moved, owner
                self._free_bytes -= moved.tensor.nbytes

    def take(self, item: Hashable) -> MovedFeature | None:
        """Remove and return an item's feature, or return None."""
        if item not in self._features:
            return None
        with self._lock:
            moved, _ = self._features.pop(item, (None, None))
            if moved is not None:
                self._free_bytes += moved.tensor.nbytes
            return moved

    def drop(self, owner: object) -> None:
        """Remove all features that `owner` added."""
        for item, (_, feature_owner) in list(self._features.items()):
            if feature_owner is owner:
                self.take(item)

    def clear(self) -> None:
        """Remove all features."""
        for item in list(self._features):
            self.take(item)
