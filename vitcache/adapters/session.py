"""What the stand-ins of one attachment share: model, cache, namespace of the weights, counts."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vitcache.adapters.weights import WeightsFingerprint
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.keys.content import Namespace
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.pipeline.shadow import Shadow, logger
from vitcache.ring.pinned_ring import PinnedRing


@dataclass(frozen=True)
class AttachStats:
    """What the calls through one attachment came to.

    `encoded` items ran through the vision tower, `hits` came from the cache, `duplicates` were equal to
    another item of their call. `bypassed` calls went to the stock method as they were. `pixel_bytes_moved`
    counts pixels that were copied to the tower's device. `shadowed` hits were encoded again, and
    `shadow_difference` is the largest absolute difference that was found.
    """

    encoded: int = 0
    hits: int = 0
    duplicates: int = 0
    bypassed: int = 0
    pixel_bytes_moved: int = 0
    shadowed: int = 0
    shadow_difference: float = 0.0


class Session:
    """What the stand-ins of one attachment share."""

    def __init__(
        self,
        model: nn.Module,
        tower_name: str,
        cache: EmbeddingCache,
        namespace: Namespace,
        ring: PinnedRing | None,
        shadow_every: int,
    ) -> None:
        self.model = model
        self.cache = cache
        self.namespace = namespace.digest()
        self.stats = AttachStats()
        self.shadow = Shadow(shadow_every, self.note_difference) if shadow_every else None
        self.thread = threading.local()
        self._named = namespace
        self._tower_name = tower_name
        self._ring = ring
        self._movers: dict[torch.device, FeatureMover] = {}
        self._lock = threading.Lock()
        self._weights = WeightsFingerprint(self.model, self.tower)

    @property
    def tower(self) -> Any:
        return getattr(self.model, self._tower_name)

    @property
    def config(self) -> Any:
        return self.model.config

    def count(self, **more: int) -> None:
        with self._lock:
            totals = {name: getattr(self.stats, name) + number for name, number in more.items()}
            self.stats = replace(self.stats, **totals)

    def note_difference(self, key: bytes, difference: float) -> None:
        """Count a comparison of cached rows with fresh ones, and log a difference."""
        with self._lock:
            largest = max(difference, self.stats.shadow_difference)
            self.stats = replace(self.stats, shadowed=self.stats.shadowed + 1, shadow_difference=largest)
        if difference:
            logger.warning(
                "entry %s differs from what the vision tower gives now by up to %g: call "
                "cache.advance_epoch() if the model was changed",
                key.hex(),
                difference,
            )

    def forget(self) -> None:
        """Look up none of the entries so far: the weights that made them are others now, or are to be.

        From then on no other attachment shares entries with this one, whatever its namespace; theirs stay.
        """
        self.namespace = replace(self._named, adapter=os.urandom(16).hex()).digest()

    def current_namespace(self) -> bytes:
        """Return the namespace of the weights as they are now."""
        with self._lock:
            weights = WeightsFingerprint(self.model, self.tower)
            if not weights.unchanged_since(self._weights):
                self.forget()
                self._weights = weights
            return self.namespace

    def tower_device(self) -> torch.device | None:
        """Where the tower takes its pixels; None where hooks bring weights and pixels together."""
        device = next(self.tower.parameters()).device
        return None if device.type == "meta" else device

    def mover_to(self, device: torch.device) -> FeatureMover:
        """Return what moves pixels there, by the ring that was given if it goes there, or its own.

        A tower may go from one device to another while it is attached.
        """
        with self._lock:
            if device not in self._movers:
                ring = self._ring if self._ring is not None and self._ring.device == device else None
                self._movers[device] = FeatureMover(device, ring, None)
            return self._movers[device]
