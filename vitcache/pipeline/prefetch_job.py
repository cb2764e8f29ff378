"""`PrefetchJob`: the work of one prefetch, which encodes items, or only moves their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.thread_modes import TorchModes
from vitcache.pages.reservation import Reservation
from vitcache.pipeline.encoder_runner import EncoderRunner
from vitcache.pipeline.items import Chunk
from vitcache.pipeline.lookup import claim_all
from vitcache.pipeline.plan import Occurrence, plan
from vitcache.pipeline.prefetch import Prefetch
from vitcache.pipeline.prefetched_features import PrefetchedFeatures
from vitcache.pipeline.step_item import StepItem, wait_until_read

FindStepItems = Callable[[Sequence[Occurrence]], list[StepItem]]


class PrefetchJob:
    """Runs prefetches in the worker thread, one at a time, on a stream of its own."""

    def __init__(
        self,
        cache: EmbeddingCache,
        runner: EncoderRunner,
        prefetched: PrefetchedFeatures,
        find_step_items: FindStepItems,
    ) -> None:
        self._cache = cache
        self._runner = runner
        self._prefetched = prefetched
        self._find_step_items = find_step_items
        self._stream: torch.cuda.Stream | None = None

    def work(
        self, chunks: Sequence[Chunk], encode: bool, modes: TorchModes, ready: Any, handle: Prefetch
    ) -> None:
        """Encode the missing items, or move their features, until the prefetch is cancelled.

        `ready` is an event behind the work of the caller's stream, which may produce features and weights.
        """
        if self._cache.device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(self._cache.device)
        streams = [] if self._stream is None else [self._stream]
        for stream in streams:
            stream.wait_event(ready)
        with modes.apply(streams):
            missing = [
                step_item for step_item in self._find_step_items(plan(chunks)) if self._must_encode(step_item)
            ]
            batches = self._runner.batches(missing)
            for number, batch in enumerate(batches):
                if handle.is_cancelled:
                    break
                if encode:
                    following = batches[number + 1] if number + 1 < len(batches) else []
                    self._runner.start([*batch, *following])
                    self._encode(batch)
                else:
                    self._move_features(batch, handle)

    def _must_encode(self, step_item: StepItem) -> bool:
        return step_item.is_missing and step_item.key is not None and step_item.key not in self._cache

    def _move_features(self, batch: list[StepItem], handle: Prefetch) -> None:
        """Move features to the device, and store them until a step takes them or the handle is cancelled."""
        for step_item in batch:
            if step_item.identity not in self._prefetched and self._prefetched.has_free_bytes:
                self._runner.start([step_item])
                if step_item.moved is not None:
                    self._prefetched.add(step_item.identity, step_item.moved, handle)
                    if not self._must_encode(step_item):  # a step has encoded the item
                        self._prefetched.take(step_item.identity)
        wait_until_read(batch)
        if handle.is_cancelled:
            self._prefetched.drop(handle)

    def _encode(self, batch: list[StepItem]) -> None:
        """Encode the items of a micro-batch that no other caller encodes, and insert their rows."""
        with ExitStack() as cleanup:
            cleanup.callback(wait_until_read, batch)
            claim_all(self._cache, batch, cleanup)
            missing = [
                step_item
                for step_item in batch
                if step_item.claim is not None and step_item.claim.is_mine and self._must_encode(step_item)
            ]
            with self._runner.exclusive():
                self._runner.run(missing)
                self._runner.store_fresh(missing)
            # Before the insert: a caller that finds the rows may change the features.
            wait_until_read(missing)
            for step_item in missing:
                if isinstance(step_item.rows, Reservation):
                    cleanup.enter_context(step_item.rows).commit()
