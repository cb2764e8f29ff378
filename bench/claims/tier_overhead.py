"""Overhead of the benches `tiers` and `mooncake`: steps with new images, with an empty tier and without."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitcache import Chunk, DiskTier, EmbeddingCache, Item, Span, VisionPipeline, WriteBack
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer
from vitcache.demo.turns import one_thread
from vitcache.tiers import Tier

ENCODE, WITHOUT, EMPTY, WRITING = "encode alone", "no tier", "empty disk", "disk, each entry is stored"
MOST_SHARE = 0.01  # of the time of the encode


@dataclass(frozen=True)
class OverheadCase:
    """An image of `rows` rows of `width` float32 elements, whose encode takes about `encode_ms`."""

    rows: int
    width: int
    encode_ms: float
    is_judged: bool = False

    @property
    def name(self) -> str:
        """The time of the encode, about."""
        return f"encode of {self.encode_ms:g} ms"


class Tower:
    """A vision tower of linear layers, with as many as take the time of the case."""

    def __init__(self, case: OverheadCase) -> None:
        self._weight = torch.randn(case.width, case.width) / case.width**0.5
        self._num_layers = 1
        image = torch.randn(case.rows, case.width)
        self(image)
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            self(image)
            times.append(time.perf_counter() - begin)
        self._num_layers = max(1, round(case.encode_ms / 1e3 / sorted(times)[4]))

    def __call__(self, image: Tensor) -> Tensor:
        """Return the rows of an image."""
        for _ in range(self._num_layers):
            image = torch.tanh(image @ self._weight)
        return image

    def encode(self, images: Sequence[Tensor], items: Sequence[Item]) -> list[Tensor]:
        """Return the rows of each image: the encoder of a pipeline."""
        return [self(image) for image in images]


def run_overhead(case: OverheadCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case with a disk; yields a label before each part."""
    with tempfile.TemporaryDirectory() as folder:

        def disk(name: str) -> Tier:
            return DiskTier(Path(folder) / name.replace(" ", "-"), "1GiB")

        yield from run_steps(case, recorder, timer, disk, EMPTY, WRITING)


def run_steps(
    case: OverheadCase,
    recorder: Recorder,
    timer: Timer,
    make_tier: Callable[[str], Tier],
    empty: str,
    writing: str,
) -> Iterator[str]:
    """Measure steps without a tier, with an empty one, and with one in which each image is stored.

    `make_tier` makes the tier of a contender; `empty` and `writing` are the names of the two contenders.
    """
    with torch.no_grad(), one_thread(), ExitStack() as stack:
        yield "tower"
        tower, image = Tower(case), torch.randn(case.rows, case.width)
        table, ids = torch.randn(8, case.width), torch.zeros(1, case.rows + 2, dtype=torch.int64)
        expected = torch.cat([table[:1], tower(image), table[:1]])[None]
        numbers = itertools.count()
        step_of: dict[str, Callable[[], Tensor]] = {}
        caches = {}
        for name in (WITHOUT, empty, writing):
            tiers = [] if name == WITHOUT else [make_tier(name)]
            rule = WriteBack(hits=0) if name == writing else WriteBack()
            cache = caches[name] = stack.enter_context(_make_cache(case, tiers, rule))
            pipeline = VisionPipeline(tower.encode, cache)

            def step(pipeline: VisionPipeline = pipeline) -> Tensor:
                item = Item(image, Span(1, case.rows), key=next(numbers).to_bytes(32, "big"))
                chunk = Chunk([item], 0, case.rows + 2)
                pipeline.prefetch([chunk]).wait()
                return pipeline.embed([chunk], ids, table).inputs_embeds

            step_of[name] = step
            if not torch.equal(step(), expected):
                raise RuntimeError(f"{name}: the step gave other rows than a loop: it gets no number")
        yield "steps in turns"
        samples = timer.rounds_us({ENCODE: lambda: tower(image), **step_of})
        for name in (empty, writing):
            caches[name].flush(60)
            stats = caches[name].stats().tiers[0]
            if stats.hits or not stats.misses or bool(stats.stored) != (name == writing):
                raise RuntimeError(f"{name}: unexpected hits, misses or stores: it gets no number")
    encode_us, plain_us = samples[ENCODE].value, samples[WITHOUT].value
    for name, sample in samples.items():
        is_judged = case.is_judged and name == empty
        recorder.add(
            *(case.name, name, "step_us", "us", sample),
            against=(WITHOUT, plain_us),
            target=1 + MOST_SHARE if is_judged else None,
            limit=plain_us + MOST_SHARE * encode_us if is_judged else None,
        )


def _make_cache(case: OverheadCase, tiers: list[Tier], rule: WriteBack) -> EmbeddingCache:
    size = 8 * max(case.rows, 16) * case.width * 4
    return EmbeddingCache(
        case.width,
        dtype=torch.float32,
        device="cpu",
        device_bytes=size,
        host_bytes=size,
        tiers=tiers,
        weights_name="bench",
        write_back=rule,
    )
