"""`PrefetchJob`: the work of one prefetch, which encodes items, or only moves their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitcache._native import StepPlan, has_unfolded, read_requests
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.fetch import Fetch
from vitcache.device.thread_modes import TorchModes
from vitcache.keys.threads import KeyThreads
from vitcache.pages.reservation import Reservation
from vitcache.pipeline.encoder_runner import EncoderRunner
from vitcache.pipeline.feature_mover import MovedFeature
from vitcache.pipeline.items import Chunk
from vitcache.pipeline.kept_rows import KeptRows
from vitcache.pipeline.lookup import claim_all, release_claims
from vitcache.pipeline.prefetch import Prefetch, logger
from vitcache.pipeline.prefetched_features import PrefetchedFeatures
from vitcache.pipeline.step_item import Requests, State, StepItem, cancel_stored, wait_until_read
from vitcache.pipeline.step_keys import find_keys, fold_given_keys
from vitcache.pipeline.tier_fetch import Wanted, fetch_missing

NO_BATCH = -1  # StepPlan::kNoBatch: the chunks have no places in a batch


class PrefetchJob:
    """Runs prefetches in the worker thread, one at a time, on a stream of its own."""

    def __init__(
        self,
        cache: EmbeddingCache,
        runner: EncoderRunner,
        prefetched: PrefetchedFeatures,
        kept: KeptRows,
        namespace: bytes,
        keys: KeyThreads,
        tenant: str = "",
    ) -> None:
        self._cache = cache
        self._runner = runner
        self._prefetched = prefetched
        self._kept = kept
        self._namespace = namespace
        self._keys = keys
        self._tenant = tenant
        self._stream: torch.cuda.Stream | None = None

    def work(
        self, chunks: Sequence[Chunk], encode: bool, modes: TorchModes, ready: Any, handle: Prefetch
    ) -> None:
        """Encode the missing items, or move their features, until the prefetch is cancelled.

        If the cache has tiers below the host tier, the worker asks them first, and waits at most the cache's
        `fetch_timeout_s` for them.

        `ready` is an event behind the work of the caller's stream, which may produce features and weights.
        """
        if self._cache.device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(self._cache.device)
        streams = [] if self._stream is None else [self._stream]
        for stream in streams:
            stream.wait_event(ready)
        with modes.apply(streams):
            plan, requests = self._plan(chunks)
            missing = self._find_missing(plan, requests)
            if missing and self._cache.has_lower_tiers:
                if not handle.is_cancelled:
                    self._ask_tiers(missing, handle._add_fetch)
                missing = [step_item for step_item in missing if self._must_encode(step_item)]
            batches = self._runner.batches(missing)
            for number, batch in enumerate(batches):
                if handle.is_cancelled:
                    break
                if encode:
                    following = batches[number + 1] if number + 1 < len(batches) else []
                    self._runner.start(batch)
                    self._runner.start_ahead(following)
                    self._encode(batch, plan, requests)
                elif self._runner.moves_features and not self._move_features(batch, handle):
                    logger.info("a prefetch has moved as many bytes of features as all prefetches may keep")
                    break

    def fetch(self, chunks: Sequence[Chunk]) -> None:
        """Ask the tiers for the missing items, in the calling thread; see `VisionPipeline.fetch`."""
        self._ask_tiers(self._find_missing(*self._plan(chunks)))

    def _plan(self, chunks: Sequence[Chunk]) -> tuple[StepPlan, Requests]:
        requests = read_requests(chunks, Chunk)
        if has_unfolded(requests, self._namespace):
            fold_given_keys(requests, self._namespace, self._tenant)
        return StepPlan(chunks, requests, self._namespace, NO_BATCH, self._cache.row_width), requests

    def _find_missing(self, plan: StepPlan, requests: Requests) -> list[StepItem]:
        """Return the items that are neither cached nor kept, and whose keys could be computed."""
        found = find_keys(plan, requests, self._namespace, self._keys, tenant=self._tenant)
        hashed = {step_item.number: step_item for step_item in found}
        missing = [
            hashed.get(number) or StepItem.of(plan, requests, number)
            for number in range(len(plan))
            if not plan.has_rows(number)
        ]
        self._kept.serve(plan, requests, missing)
        return [step_item for step_item in missing if self._must_encode(step_item)]

    def _ask_tiers(
        self, missing: list[StepItem], on_begin: Callable[[Fetch], object] = lambda fetch: None
    ) -> None:
        """Fetch items from the tiers of the cache, and wait for the cache's deadline at most."""
        wanted = [
            Wanted(step_item.key, step_item.num_rows, step_item.row_width, step_item.tenant(self._tenant))
            for step_item in missing
            if step_item.key is not None
        ]
        fetch_missing(self._cache, wanted, on_begin)

    def _must_encode(self, step_item: StepItem) -> bool:
        if step_item.state is not State.MISSING or step_item.key is None:
            return False
        return step_item.key not in self._cache

    def _move_features(self, batch: list[StepItem], handle: Prefetch) -> bool:
        """Move features to the device, and store them until a step takes them or the handle is cancelled.

        Items with ``move_feature=False`` are skipped, and their features are not loaded here. The oldest
        features of other prefetches are dropped for new ones. False: those of `handle` are too many.
        """
        has_room = True
        for step_item in batch:
            if step_item.item.move_feature and step_item.identity not in self._prefetched:
                has_room = self._prefetched.drop_oldest(handle)
                if not has_room:
                    break
                self._runner.start([step_item])
                if isinstance(step_item.moved, MovedFeature):
                    self._prefetched.add(step_item.identity, step_item.moved, handle)
                    if not self._must_encode(step_item):  # a step has encoded the item
                        self._prefetched.take(step_item.identity)
        wait_until_read(batch)
        if handle.is_cancelled:
            self._prefetched.drop(handle)
        return has_room

    def _encode(self, batch: list[StepItem], plan: StepPlan, requests: Requests) -> None:
        """Encode the items of a micro-batch that no other caller encodes, and insert or keep their rows."""
        try:
            with ExitStack() as cleanup:
                cleanup.callback(cancel_stored, batch)
                cleanup.callback(wait_until_read, batch)
                claim_all(self._cache, batch, cleanup)
                missing = [
                    step_item
                    for step_item in batch
                    if step_item.claim is not None
                    and step_item.claim.is_mine
                    and self._must_encode(step_item)
                ]
                if missing:
                    self._runner.exclusive("VisionPipeline.prefetch", partial(self._run_and_store, missing))
                # Before the insert: a caller that finds the rows may change the features.
                wait_until_read(missing)
                for step_item in missing:
                    if isinstance(step_item.rows, Reservation):
                        step_item.rows.commit()
                rejected = [(item, item.rows) for item in missing if isinstance(item.rows, Tensor)]
                self._kept.keep(rejected, plan, requests, self._namespace, is_placed=False)
        finally:
            release_claims(batch)

    def _run_and_store(self, missing: list[StepItem]) -> None:
        self._runner.run(missing)
        self._runner.store_fresh(missing)
