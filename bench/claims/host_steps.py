"""The host's time of a step whose rows are tiny: vitcache beside dicts and the gathers of engines.

This module is a part of the bench `step`. `gathers`, `vllm_gather` and `sglang_gather` contain the
contenders. Each must return the values of a loop over tokens, for a step that misses and for a step that
hits, before any contender is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vitcache import EmbeddingCache, Item, VisionPipeline
from vitcache.bench.chats.gathers import WIDTH, Gather, MaskedDict, Request, SlicedDict, Vitcache
from vitcache.bench.chats.sglang_gather import Sglang
from vitcache.bench.chats.vllm_gather import Vllm
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import CPU
from vitcache.bench.harness.timing import Sample, Timer, us_per_call
from vitcache.bench.traffic.simulation import PAGE_ROWS

JUDGED, REFERENCE = "vitcache", "dict, cat and mask"
# Targets of the design for a step whose items all hit: the time as a multiple of REFERENCE's, by items.
TARGETS = {1: 3.5, 8: 1.8, 32: 0.93, 512: 0.74}
CONTENDERS: dict[str, Callable[[Request], Gather]] = {
    REFERENCE: MaskedDict,
    "dict, slices": SlicedDict,
    "vLLM": Vllm,
    "SGLang": Sglang,
}
CALLS, MOST_ITEMS_PER_ROUND = 20, 256  # calls of one contender in a round, and the items of these calls
LONG_ITEMS, LONG_REPEATS = 512, 15  # rounds of a step without a target with at least this number of items


@dataclass(frozen=True)
class HostCase:
    """A request with `items` items."""

    RUNS_ON: ClassVar[str] = CPU

    items: int

    @property
    def name(self) -> str:
        """The number of items."""
        return f"{self.items} items"

    @property
    def calls(self) -> int:
        """Calls of each contender in a round: fewer for a long step."""
        return max(1, min(CALLS, MOST_ITEMS_PER_ROUND // self.items))


@dataclass(frozen=True)
class ThreadsCase(HostCase):
    """Requests with `items` items, one for each thread."""

    threads: tuple[int, ...] = (1, 2, 4)

    @property
    def name(self) -> str:
        """The number of items."""
        return f"{self.items} items on threads"


def run_host(case: HostCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case on one thread of torch; yields a label before each part."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if isinstance(case, ThreadsCase):
            yield from run_threads(case, recorder, timer)
        else:
            yield from run_hits_and_misses(case, recorder, timer)
    finally:
        torch.set_num_threads(threads_before)


def run_hits_and_misses(case: HostCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure steps of one thread for all contenders, in turns."""
    request = Request(case.items)
    few = timer.with_repeats(min(timer.repeats, LONG_REPEATS)) if case.items >= LONG_ITEMS else timer
    with open_vitcache([request]) as [vitcache]:
        gathers = {JUDGED: vitcache, **{name: make(request) for name, make in CONTENDERS.items()}}
        for name, gather in gathers.items():
            check(name, gather)
        steps: dict[str, Callable[[], object]] = {name: gather.step for name, gather in gathers.items()}
        forget: dict[str, Callable[[], object]] = {name: gather.forget for name, gather in gathers.items()}
        yield "hits, in turns"
        with no_encodes([request]):
            hits = (timer if case.items in TARGETS else few).rounds_us(steps, calls=case.calls)
        yield "misses, in turns"
        misses = few.rounds_us(steps, calls=case.calls, before=forget)
    add(recorder, f"{case.name}, hits", hits, TARGETS.get(case.items))
    add(recorder, f"{case.name}, misses", misses)


def run_threads(case: ThreadsCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure steps that all hit, on several threads that share one pipeline, or one dict each."""
    for threads in case.threads:
        requests = [Request(case.items) for _ in range(threads)]
        with open_vitcache(requests) as shared:
            gathers: dict[str, list[Gather]] = {JUDGED: [*shared]}
            gathers[REFERENCE] = [MaskedDict(request) for request in requests]
            for name, parts in gathers.items():
                for part in parts:
                    check(name, part)
            yield f"{threads} threads, in turns"
            values: dict[str, list[float]] = {name: [] for name in gathers}
            with no_encodes(requests):
                for _ in range(max(3, timer.repeats // 2)):
                    for name, parts in gathers.items():
                        values[name].append(us_per_call(run_step, parts * (4 * case.calls), threads))
        samples = {name: Sample.of(times) for name, times in values.items()}
        add(recorder, f"{case.items} items, {threads} threads", samples)


def run_step(gather: Gather) -> Tensor:
    """Run one step."""
    return gather.step()


@contextmanager
def open_vitcache(requests: Sequence[Request]) -> Iterator[list[Vitcache]]:
    """Yield a contender for each request; all of them share one pipeline and one cache for all rows."""
    [num_items] = {len(request.keys) for request in requests}
    with ExitStack() as stack:
        cache = EmbeddingCache(
            WIDTH,
            dtype=torch.float32,
            device=CPU,
            # One page per item.
            device_bytes=len(requests) * num_items * PAGE_ROWS * WIDTH * torch.float32.itemsize,
        )
        stack.callback(cache.close)
        request_of = {key: request for request in requests for key in request.keys}

        def encode(features: list[Tensor], items: list[Item]) -> list[Tensor]:
            request_of[items[0].key or b""].num_encoded += len(items)
            return features  # an item's feature is its rows: a slice of one tensor

        pipeline = stack.enter_context(VisionPipeline(encode, cache))
        yield [Vitcache(request, cache, pipeline) for request in requests]


def check(name: str, gather: Gather) -> None:
    """Raise RuntimeError if the rows of an empty contender differ from those of a loop over tokens."""
    try:
        gather.check()
    except RuntimeError as error:
        raise RuntimeError(f"{name}: {error}: it gets no number") from error


@contextmanager
def no_encodes(requests: Sequence[Request]) -> Iterator[None]:
    """Raise RuntimeError if a step inside the ``with`` block encodes an item."""
    before = sum(request.num_encoded for request in requests)
    yield
    encoded = sum(request.num_encoded for request in requests) - before
    if encoded:
        raise RuntimeError(f"expected only hits, got {encoded} encodes: they get no number")


def add(recorder: Recorder, label: str, samples: dict[str, Sample], target: float | None = None) -> None:
    """Add a result per contender; its ratio is to the dict with a mask. `target` is that of vitcache."""
    reference_us = samples[REFERENCE].value
    for name, sample in samples.items():
        factor = target if name == JUDGED else None
        recorder.add(
            label,
            name,
            "host_us",
            "us",
            sample,
            against=(REFERENCE, reference_us),
            target=factor,
            limit=factor and factor * reference_us,
        )
