"""Claim: vitcache builds ``inputs_embeds`` in the time of a copy of its bytes, far faster than engines do.

Per case and contender the bench measures the time on the device with a cold L2, the host's time to issue the
call, and the peak memory. The limit is a plain copy in the same run that reads and writes, together, as many
bytes as a build must: the deepstack rows of text tokens are only written. A contender gets a number only if
its result equals the reference's bit for bit. On the device that the design measured, more results compare
each contender with the design's number. One case is measured by other tools, too, to check the timer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from vitcache.bench.chats.contenders import CONTENDERS, WITHOUT_DEEPSTACK, Scene, slice_loop
from vitcache.bench.harness import figures
from vitcache.bench.harness.cross_check import add_cross_checks
from vitcache.bench.harness.published import TOLERANCE, published_us
from vitcache.bench.harness.ratios import draw_ratios
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import PLACEMENT_CASES, PlacementCase
from vitcache.bench.harness.timing import Sample, Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "placement"
CASES = PLACEMENT_CASES
# Target of the design: COPY_FACTOR times the copy of the same bytes, plus TABLE_US for the row table.
COPY_FACTOR, TABLE_US = 1.02, 2.0
# Targets of the design for large cases: vitcache is this number of times faster than the fastest engine, and
# than transformers.
AHEAD_OF_ENGINES, AHEAD_OF_TRANSFORMERS = 4.0, 20.0
ENGINES = ("vllm", "sglang", "tensorrt-llm")
# The case that other tools measure, too: on the device it takes longer than on the host.
CROSS_CHECKED = "32x880"


def run_case(case: PlacementCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields the name of each contender before it runs."""
    scene = Scene(case, timer.device)
    expected = slice_loop(scene)
    output_bytes = sum(part.nbytes for part in expected if part is not None)
    moved_bytes = case.moved_elements * scene.dtype.itemsize
    yield "copy"
    copy = time_copy(moved_bytes, timer)
    recorder.add(case.name, "copy", "device_us", "us", copy, bytes_moved=moved_bytes)
    compare_with_design(case, "copy", copy, recorder)
    times: dict[str, Sample] = {}
    for name, build in CONTENDERS.items():
        if case.levels and name in WITHOUT_DEEPSTACK:
            continue
        yield name
        check(name, build(scene), expected)
        measured = timer.device_us(lambda build=build: build(scene))
        times[name] = measured
        on_gpu = timer.device.type == "cuda"
        bounded = on_gpu and name.startswith("vitcache")
        recorder.add(
            case.name,
            name,
            "device_us",
            "us",
            measured,
            bytes_moved=moved_bytes,
            against=("copy", copy.value),
            target=COPY_FACTOR if bounded else None,
            limit=COPY_FACTOR * copy.value + TABLE_US if bounded else None,
        )
        compare_with_design(case, name, measured, recorder)
        if on_gpu:
            recorder.add(case.name, name, "host_us", "us", timer.host_us(lambda build=build: build(scene)))
            peak = float(timer.peak_bytes(lambda build=build: build(scene)))
            against = ("output", float(output_bytes))
            recorder.add(case.name, name, "peak_bytes", "B", Sample.of([peak]), against=against)

    def us(name: str) -> float:
        return times[name].value

    for rivals, target in ((ENGINES, AHEAD_OF_ENGINES), (("transformers",), AHEAD_OF_TRANSFORMERS)):
        fastest = min((name for name in rivals if name in times), key=us, default=None)
        if fastest is not None:
            bound = target if timer.device.type == "cuda" and case.is_large else None
            recorder.add(
                case.name,
                f"ahead of {fastest}",
                "speedup",
                "x",
                Sample.of([us(fastest) / us("vitcache")]),
                target=bound,
                limit=bound,
                at_least=True,
            )
    # Last, so that a tool that cannot be used on this machine costs no other result of the case.
    if timer.device.type == "cuda" and case.name == CROSS_CHECKED:
        yield "vitcache, measured by other tools"
        build = CONTENDERS["vitcache"]
        add_cross_checks(case.name, "vitcache", lambda: build(scene), times["vitcache"], recorder, timer)


def compare_with_design(case: PlacementCase, name: str, measured: Sample, recorder: Recorder) -> None:
    """Record a contender's deviation from the design's number, if there is one for this device and case."""
    published = published_us(recorder.machine["device"], case.name, name)
    if published is None:
        return
    deviation = Sample.of([abs(measured.value / published - 1)])
    recorder.add(case.name, name, "off_design", "share", deviation, target=TOLERANCE, limit=TOLERANCE)


def time_copy(moved_bytes: int, timer: Timer) -> Sample:
    """Measure the limit: a plain copy that reads one half of `moved_bytes`, and writes the other half."""
    source, target = (torch.empty(moved_bytes // 2, dtype=torch.uint8, device=timer.device) for _ in range(2))
    return timer.device_us(lambda: target.copy_(source))


def check(
    name: str, built: tuple[torch.Tensor, torch.Tensor | None], expected: tuple[torch.Tensor, ...]
) -> None:
    """Raise RuntimeError if a contender's result differs from the reference's in one bit."""
    for part, got, wanted in zip(("inputs_embeds", "deepstack"), built, expected, strict=True):
        if (got is None) != (wanted is None) or (wanted is not None and not torch.equal(got, wanted)):
            raise RuntimeError(f"{name} built {part} unlike the slice loop's: it gets no number")


def draw(rows: figures.Rows) -> Figure:
    """Draw each contender's time as a multiple of a copy of the same bytes."""
    note = (
        "A case: images x rows of each. A contender is measured only if its result has the reference's bits."
    )
    return draw_ratios(rows, "vitcache", note, TABLE_US)
