"""`StepRunner`: one step of a pipeline, from its chunks to the placed rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from vitcache._native import Placement as NativePlacement
from vitcache._native import StepPlan, has_unfolded, read_requests
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.cache.plan_leases import PlanLeases
from vitcache.device.streams import check_current_stream
from vitcache.keys.threads import KeyThreads
from vitcache.pages.reservation import Reservation
from vitcache.pipeline.agreed_items import Agree, agree_on_missing
from vitcache.pipeline.early_start import EarlyStart
from vitcache.pipeline.encoder_runner import EncoderRunner
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.pipeline.items import Chunk
from vitcache.pipeline.kept_rows import KeptRows
from vitcache.pipeline.lookup import (
    claim_all,
    claim_missing,
    collect_misses,
    hits,
    release_claims,
)
from vitcache.pipeline.prefetched_features import PrefetchedFeatures
from vitcache.pipeline.results import EmbedResult, list_errors
from vitcache.pipeline.row_sources import RowSources, collect_sources
from vitcache.pipeline.shadow import Shadow
from vitcache.pipeline.step_item import Requests, StepItem, cancel_stored, wait_until_read
from vitcache.pipeline.step_keys import find_keys, fold_given_keys
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.placement.scatter_call import ScatterCall


class StepCall(Protocol):
    """The placement of a step: `EmbedCall` for `VisionPipeline.embed`, `ScatterCall` for `place`."""

    @property
    def destination(self) -> Destination:
        """The checked destination."""

    def check_spans(self, spans: NativePlacement) -> None:
        """Check the runs of the step before anything is encoded."""

    def run_placed(self, placed: Placement, store: Sequence[Reservation | None] | None = None) -> Tensor:
        """Write all rows, and return the output."""


class StepRunner:
    """Runs the steps of one pipeline. `VisionPipeline` describes the parameters, the order and the threads.

    Parameters
    ----------
    max_rows
        `max_rows_per_encode` of the pipeline.
    tenant
        The tenant of items without one, which `namespace` names, too.

    Attributes
    ----------
    shadow
        The pipeline's `Shadow`, or None.
    """

    def __init__(
        self,
        cache: EmbeddingCache,
        runner: EncoderRunner,
        mover: FeatureMover,
        prefetched: PrefetchedFeatures,
        kept: KeptRows,
        keys: KeyThreads,
        *,
        namespace: bytes,
        agree: Agree | None,
        shadow: Shadow | None,
        stream: torch.cuda.Stream | None,
        max_rows: int,
        tenant: str = "",
    ) -> None:
        self._cache = cache
        self._runner = runner
        self._mover = mover
        self._prefetched = prefetched
        self._kept = kept
        self._keys = keys
        self._namespace = namespace
        self._agree = agree
        self.shadow = shadow
        self._stream = stream
        self._max_rows = max_rows
        self._tenant = tenant

    def run(self, call: StepCall, chunks: Sequence[Chunk]) -> EmbedResult:
        """Encode the items of the chunks that are not in the cache, and place all rows.

        Raises
        ------
        IndexError, ValueError, TypeError, RuntimeError
            As `VisionPipeline.embed`.
        """
        cache, namespace, destination = self._cache, self._namespace, call.destination
        if destination.width != cache.row_width:
            refuse_width(destination, cache)
        requests = read_requests(chunks, Chunk)
        if has_unfolded(requests, namespace):
            fold_given_keys(requests, namespace, self._tenant)
        plan = StepPlan(
            chunks, requests, namespace, destination.num_tokens, destination.width, destination.hidden
        )
        placement = plan.make_placement()
        if destination.num_packed not in (None, placement.num_placed):
            _refuse_packed(destination, placement)
        call.check_spans(placement)
        hashed: Sequence[StepItem] = ()
        if plan.has_unkeyed:
            hashed = self._find_keys(plan, requests)
            placement = plan.make_placement()  # equal items are one item now
        try:
            leases = PlanLeases(cache, plan)
        except BaseException:  # such as a cache that another thread closed
            wait_until_read(hashed)
            raise
        try:
            # The copy of a hashed feature may be in flight, even if all items are hits now.
            if hashed or leases.num_hits < len(plan) or self._must_visit_hits(plan, requests, leases):
                return self._run_items(call, requests, plan, leases, hashed)
            rest = leases.add_sources(placement, destination.native)
            with torch.no_grad():
                rows = RowSources(len(plan), leases)
                placed = Placement.from_native(destination, placement, rows, rest)
                return EmbedResult(call.run_placed(placed), [])
        finally:
            leases.release()

    def _must_visit_hits(self, plan: StepPlan, requests: Requests, leases: PlanLeases) -> bool:
        """Whether a step without a miss has more work than the placement of its hits."""
        return (
            self._agree is not None
            or self.shadow is not None
            or (len(self._prefetched) > 0 and bool(self._prefetched.find_in(plan)))
            or (self._kept.requests and self._kept.has_any(requests))
            or (self._cache.has_host_tier and leases.has_host_hits())
        )

    def _run_items(
        self,
        call: StepCall,
        requests: Requests,
        plan: StepPlan,
        leases: PlanLeases,
        hashed: Sequence[StepItem],
    ) -> EmbedResult:
        """The part of a step behind the look-up, if it has misses or work on its hits."""
        step_items: dict[int, StepItem] = {}
        try:
            with ExitStack() as cleanup:
                inputs_embeds = self._run_claimed(call, requests, plan, leases, hashed, step_items, cleanup)
        finally:
            release_claims(step_items.values())
        return EmbedResult(inputs_embeds, list_errors(step_items.values(), plan))

    def _run_claimed(
        self,
        call: StepCall,
        requests: Requests,
        plan: StepPlan,
        leases: PlanLeases,
        hashed: Sequence[StepItem],
        step_items: dict[int, StepItem],
        cleanup: ExitStack,
    ) -> Tensor:
        """`_run_items` inside of its clean-up. `step_items` receives the items that need rows."""
        cache = self._cache
        cleanup.callback(wait_until_read, hashed)
        check_current_stream(cache.device)  # before an encode whose rows could not be stored
        step_items.update(collect_misses(plan, requests, leases, hashed))
        cleanup.callback(cancel_stored, step_items.values())
        moved = [
            step_items.get(number) or StepItem.of(plan, requests, number)
            for number in self._prefetched.find_in(plan)
        ]
        for step_item in moved:
            step_item.take_moved(self._prefetched.take(step_item.identity))
        cleanup.callback(wait_until_read, moved)
        cleanup.callback(wait_until_read, step_items.values())
        self._kept.serve(plan, requests, step_items.values())
        name = _name_of(call)
        if self._agree is None:
            missing = claim_missing(cache, plan, leases, step_items, cleanup, name)
        else:
            missing = agree_on_missing(self._agree, plan, requests, leases, step_items)
            claim_all(cache, missing, cleanup)
        place = partial(self._place, call, requests, plan, leases, step_items, missing, cleanup)
        return self._runner.exclusive(name, place) if missing else place()

    def _place(
        self,
        call: StepCall,
        requests: Requests,
        plan: StepPlan,
        leases: PlanLeases,
        step_items: dict[int, StepItem],
        missing: list[StepItem],
        cleanup: ExitStack,
    ) -> Tensor:
        """Encode the missing items, place all rows, and insert the new ones.

        With missing items, this thread owns the encoder: `run_placed` and `commit` may read its memory.
        """
        cache = self._cache
        if missing:
            with self._on_stream():
                self._runner.run(missing)
        given = plan, step_items.values(), leases, cache, self._mover, cleanup
        sources = collect_sources(*given, tenant=self._tenant)
        store = sources.store()
        placement = plan.make_placement()
        rest = leases.add_sources(placement, call.destination.native)
        with torch.no_grad():
            placed = Placement.from_native(call.destination, placement, sources, rest, store)
            inputs_embeds = call.run_placed(placed, store)
        chosen: list[tuple[StepItem, bytes, Tensor]] = []
        if self.shadow is not None:
            chosen = self.shadow.choose(hits(plan, requests, leases, step_items))
        # Before the insert: a caller that finds the rows may change the features.
        wait_until_read(step_items.values())
        rejected = sources.commit(cache, self._tenant)
        if rejected:
            self._kept.keep(rejected, plan, requests, self._namespace)
        if self._kept.requests:
            self._kept.finish(plan, requests)
        if self.shadow is not None and chosen:
            # After the insert: `commit` may read rows in memory that this encode overwrites.
            check = partial(self._check_hits, self.shadow, chosen, cleanup)
            if missing:
                check()
            else:
                self._runner.exclusive(_name_of(call), check)
        return inputs_embeds

    def _check_hits(
        self, shadow: Shadow, chosen: list[tuple[StepItem, bytes, Tensor]], cleanup: ExitStack
    ) -> None:
        """Encode the chosen hits once more, and compare their rows."""
        with self._on_stream():
            for step_item, key, rows in chosen:
                cleanup.callback(wait_until_read, [step_item])
                shadow.check(key, rows, partial(self._runner.encode_once_more, step_item))

    def _find_keys(self, plan: StepPlan, requests: Requests) -> list[StepItem]:
        """Find the keys of a step; features start to move as soon as their keys are known."""
        start = EarlyStart(self._cache, self._runner, self._prefetched, self._max_rows)
        return find_keys(plan, requests, self._namespace, self._keys, start, self._tenant)

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Make `stream` current. It waits for the caller's stream, which waits for `stream` at the end."""
        if self._stream is None:
            yield
            return
        current = torch.cuda.current_stream(self._cache.device)
        self._stream.wait_stream(current)
        self._runner.uses.append(self._stream)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)
            self._runner.uses.remove(self._stream)  # an interrupt before this line leaves it


def _name_of(call: StepCall) -> str:
    """Return the public call of a step, for messages."""
    return f"VisionPipeline.{'place' if isinstance(call, ScatterCall) else 'embed'}"


def _refuse_packed(destination: Destination, placement: NativePlacement) -> NoReturn:
    raise ValueError(
        f"deepstack_rows has {destination.num_packed} rows a level, the step places rows at "
        f"{placement.num_placed} tokens"
    )


def refuse_width(destination: Destination, cache: EmbeddingCache) -> NoReturn:
    """Refuse a destination whose rows have another width than those of the cache."""
    raise ValueError(
        f"the cache has rows of width {cache.row_width}, expected {destination.width} (hidden "
        f"{destination.hidden} x (1 + {destination.levels} deepstack levels))"
    )
