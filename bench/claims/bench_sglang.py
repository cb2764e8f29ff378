"""Claims about SGLang: with vitcache's plug-in, a step whose images all hit costs the host less.

SGLang's released `general_mm_embed_routine` builds the rows of one request, with a language model and a tower
that compute nothing. Stock has its cache of embeddings filled, vitcache runs through the hooks that it
registers with SGLang. The sides take turns in one process. Each must give the rows of a loop over images, and
encode as many images per step as expected, before it is timed.

On the CPU the rows are tiny: the time is the host's work. On a GPU the rows have the size of those of a real
model, and the bench measures the time on the device and on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from vitcache.bench.claims.sglang_figure import draw as draw
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import CPU, GPU
from vitcache.bench.harness.timing import Sample, Timer
from vitcache.bench.sglang.scene import Scene
from vitcache.bench.sglang.sides import STOCK, VITCACHE, Side, open_sides
from vitcache.bench.sglang.turns import Kind

NAME = "sglang"
REQUIRES = "sglang"
CLAIMS_CPU = True
TARGET_US = 350.0  # of the design, for JUDGED images of a request whose keys are known
JUDGED = 32
CALLS = 20  # calls of one contender in a round


@dataclass(frozen=True)
class HostCase:
    """A step of tiny rows with `images` images and `levels` deepstack levels."""

    RUNS_ON: ClassVar[str] = CPU
    ROWS: ClassVar[int] = 16
    HIDDEN: ClassVar[int] = 32

    images: int
    kind: Kind = Kind.SAME
    levels: int = 0

    @property
    def name(self) -> str:
        """The number of images, the objects of the step, and the number of deepstack levels."""
        count = f"{self.images} image" + ("s" if self.images != 1 else "")
        return ", ".join([count, self.kind.value, *([f"{self.levels} levels"] if self.levels else [])])

    @property
    def target_us(self) -> float | None:
        """The design's number of microseconds for vitcache."""
        return TARGET_US if self.images == JUDGED and self.kind is Kind.SAME else None


@dataclass(frozen=True)
class DeviceCase:
    """A further step of a request with `images` images of a model's size, on a GPU."""

    RUNS_ON: ClassVar[str] = GPU

    images: int
    rows: int
    hidden: int
    levels: int = 0

    @property
    def name(self) -> str:
        """The number of images, the rows of each, their width, and the number of deepstack levels."""
        size = f"{self.images} images of {self.rows} rows, hidden {self.hidden}"
        return f"{size}, {self.levels} levels" if self.levels else size


Case = HostCase | DeviceCase
COUNTS = (1, 8, 32)
CASES: dict[str, list[Case]] = {
    "full": [
        *(HostCase(images, levels=levels) for levels in (0, 3) for images in COUNTS),
        *(
            HostCase(images, kind)
            for kind in (Kind.CONTENT, Kind.IDENTITY, Kind.ENGINE_HASH)
            for images in COUNTS
        ),
        HostCase(32, Kind.CONTENT, levels=3),
        HostCase(32, Kind.ONE_NEW),
        *(DeviceCase(images, 880, 4096, levels) for levels in (0, 3) for images in COUNTS),
    ],
    "smoke": [
        *(HostCase(2, kind) for kind in Kind),
        HostCase(2, levels=3),
        DeviceCase(3, 7, 64, levels=2),
    ],
}


def run_case(case: Case, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case on one thread of torch; yields a label before each part."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():  # as in SGLang's scheduler
            if isinstance(case, HostCase):
                yield from run_host(case, recorder, timer)
            else:
                yield from run_device(case, recorder, timer)
    finally:
        torch.set_num_threads(threads_before)


def run_host(case: HostCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure the host's time of both sides, in turns."""
    cpu = torch.device(CPU)
    scene = Scene(case.images, rows=case.ROWS, hidden=case.HIDDEN, levels=case.levels, device=cpu)
    yield "import SGLang"
    with open_sides(scene, case.kind) as sides:
        yield "check, and in turns"
        for name, side in sides.items():
            check(name, side)
        with counted(sides, case.kind):
            steps: dict[str, Callable[[], object]] = dict(sides.items())
            before: dict[str, Callable[[], object]] = {name: side.prepare for name, side in sides.items()}
            samples = timer.rounds_us(steps, calls=CALLS, before=before)
    add(recorder, case.name, "host_us", samples, case.target_us)


def run_device(case: DeviceCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure the time on the device, and the host's time, of both sides."""
    scene = Scene(case.images, rows=case.rows, hidden=case.hidden, levels=case.levels, device=timer.device)
    yield "import SGLang"
    with open_sides(scene, Kind.SAME) as sides:
        yield "check"
        for name, side in sides.items():
            check(name, side)
        with counted(sides, Kind.SAME):
            for metric, measure in (("device_us", timer.device_us), ("host_us", timer.host_us)):
                yield metric
                add(
                    recorder,
                    case.name,
                    metric,
                    {name: measure(side, side.prepare) for name, side in sides.items()},
                )


def check(name: str, side: Side) -> None:
    """Raise RuntimeError if a step that misses, or a later one, builds other rows than a loop over images."""
    for _ in range(2):
        if not side.is_right():
            raise RuntimeError(f"{name} built other rows than a loop over images: it gets no number")


@contextmanager
def counted(sides: dict[str, Side], kind: Kind) -> Iterator[None]:
    """Raise RuntimeError if a step inside the ``with`` block was not vitcache's, or encoded other images."""
    from vitcache.adapters.sglang import stats

    before = {name: (side.num_steps, side.model.num_encoded) for name, side in sides.items()}
    placed_before = stats().steps
    yield
    for name, side in sides.items():
        steps, encoded = side.num_steps - before[name][0], side.model.num_encoded - before[name][1]
        if encoded != steps * kind.encodes:
            raise RuntimeError(f"{name} encoded {encoded} images in {steps} steps: it gets no number")
        placed = stats().steps - placed_before
        if name == VITCACHE and placed != steps:
            raise RuntimeError(f"{name} placed {placed} of {steps} steps: it gets no number")


def add(
    recorder: Recorder, case: str, metric: str, samples: dict[str, Sample], target_us: float | None = None
) -> None:
    """Add a result per side; its ratio is to stock. `target_us` is the limit of vitcache."""
    for name, sample in samples.items():
        target = target_us if name == VITCACHE else None
        against = (STOCK, samples[STOCK].value)
        recorder.add(case, name, metric, "us", sample, against=against, target=target, limit=target)
