"""What the worker thread does for a prefetch: encode what a later chunk needs, or only move its features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.thread_modes import TorchModes
from vitcache.pages.reservation import Reservation
from vitcache.pipeline.encoder_runner import Encoding
from vitcache.pipeline.items import Chunk
from vitcache.pipeline.prefetch import Prefetch
from vitcache.pipeline.prefetched_features import Staging
from vitcache.pipeline.step_item import Need, wait_until_read

FindNeeds = Callable[[Sequence[Chunk]], list[Need]]


class Ahead:
    """Works on one prefetch at a time, in the worker thread, on a stream of its own."""

    def __init__(
        self, cache: EmbeddingCache, encoding: Encoding, staging: Staging, find_needs: FindNeeds
    ) -> None:
        self._cache = cache
        self._encoding = encoding
        self._staging = staging
        self._find_needs = find_needs
        self._stream: torch.cuda.Stream | None = None

    def work(
        self, chunks: Sequence[Chunk], encode: bool, modes: TorchModes, ready: Any, handle: Prefetch
    ) -> None:
        """Do what is missing, micro-batch by micro-batch, until the prefetch is cancelled.

        `ready` is an event of the caller's stream, behind what its features and weights come from.
        """
        if self._cache.device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(self._cache.device)
        streams = [] if self._stream is None else [self._stream]
        for stream in streams:
            stream.wait_event(ready)
        with modes.apply(streams):
            missing = [need for need in self._find_needs(chunks) if self._is_new(need)]
            batches = self._encoding.batches(missing)
            for number, batch in enumerate(batches):
                if handle.is_cancelled:
                    break
                if encode:
                    following = batches[number + 1] if number + 1 < len(batches) else []
                    self._encoding.start([*batch, *following])
                    self._encode(batch)
                else:
                    self._stage(batch, handle)

    def _is_new(self, need: Need) -> bool:
        return need.is_missing and need.key is not None and need.key not in self._cache

    def _stage(self, batch: list[Need], handle: Prefetch) -> None:
        """Move features to the device, to wait there."""
        for need in batch:
            if need.identity not in self._staging and self._staging.has_room:
                self._encoding.start([need])
                if need.moved is not None:
                    self._staging.add(need.identity, need.moved, handle)
                    if not self._is_new(need):  # the step was faster
                        self._staging.take(need.identity)
        wait_until_read(batch)
        if handle.is_cancelled:
            self._staging.drop(handle)

    def _encode(self, batch: list[Need]) -> None:
        """Encode what nobody else is encoding, and enter it."""
        with ExitStack() as held:
            held.callback(wait_until_read, batch)
            claimed = [
                need
                for need in batch
                if need.key is not None and held.enter_context(self._cache.claim(need.key)).is_mine
            ]
            epoch = self._cache.epoch
            missing = [need for need in claimed if self._is_new(need)]
            with self._encoding.turn():
                self._encoding.run(missing, epoch)
                self._encoding.keep(missing, epoch)
            wait_until_read(missing)  # whoever finds the rows may change the features
            for need in missing:
                if isinstance(need.rows, Reservation):
                    held.enter_context(need.rows).commit()
