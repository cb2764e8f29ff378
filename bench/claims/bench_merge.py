"""Claim: an attached model merges cached rows into `inputs_embeds` in one pass over them.

A call is the stock forward of a base model whose language model is replaced by one that returns its inputs:
the embedding of the ids, and the merge of image rows that exist already. The contenders are described in
`MergeScene`. The limit looks up the ids and copies the same rows to their tokens, so its milliseconds are
those of one pass. The time of ``off`` and ``placed`` contains the hash of 3.5 KiB per image. On the CPU all
contenders use one thread: with several threads, an operation would wait for the thread that another process
of the machine interrupts.

Each contender must give the bits of the stock merge, also in memory that contains NaN before the call. The
bytes are those of bfloat16 tensors that operations and launches read and write, as `RowTraffic` counts them:
without weights, ids and masks. The extra memory is the peak of a call's allocations without the bytes of its
result, which are `inputs_embeds` and the deepstack levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from vitcache.bench.claims.merge_scene import MergeCase, Merged, MergeScene
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.row_traffic import RowTraffic
from vitcache.bench.harness.timing import Sample, Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "merge"
CLAIMS_CPU = True
CASES = {
    "full": [MergeCase(8), MergeCase(8, levels=3), MergeCase(32), MergeCase(32, levels=3)],
    "smoke": [MergeCase(2, hidden=64, grid=(1, 2, 3)), MergeCase(3, levels=3, hidden=64, grid=(1, 2, 3))],
}
REPEATS = 15  # a call takes up to a second on a CPU


def run_case(case: MergeCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case on one thread; yields a label before each part."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield from measure(case, recorder, timer)
    finally:
        torch.set_num_threads(threads_before)


def measure(case: MergeCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """As `run_case`, with any number of threads, without gradients."""
    yield "model"
    scene = MergeScene(case, timer.device)
    moved: dict[str, int] = {}
    peaks: dict[str, int] = {}
    with scene.attached():
        expected = scene.contenders["stock"]()
        result_bytes = sum(part.nbytes for part in expected)
        for name, call in scene.contenders.items():
            yield name
            moved[name] = count_bytes(name, scene, expected)
            peaks[name] = timer.peak_bytes(call)
        del expected
        yield "all in turns"
        few = timer.with_repeats(min(timer.repeats, REPEATS))
        times = few.rounds_us(scene.contenders)
        scene.check_counts()
    limit_ms, limit_bytes = times["limit"].value / 1e3, float(moved["limit"])
    for name, us in times.items():
        ms = Sample(*(value / 1e3 for value in (us.value, us.p20, us.p80)))
        total, extra = (Sample.of([float(number)]) for number in (moved[name], peaks[name] - result_bytes))
        recorder.add(
            case.name, name, "merge_ms", "ms", ms, bytes_moved=moved[name], against=("limit", limit_ms)
        )
        recorder.add(case.name, name, "moved_bytes", "B", total, against=("limit", limit_bytes))
        recorder.add(case.name, name, "extra_bytes", "B", extra, against=("result", float(result_bytes)))


def count_bytes(name: str, scene: MergeScene, expected: Merged) -> int:
    """Return the bytes that one call reads and writes.

    Raises
    ------
    RuntimeError
        If the call's result differs from the stock merge in one bit, or if it has rows that were not written.
    """
    traffic = RowTraffic(torch.bfloat16, scene.placeholder)
    with traffic:
        merged = scene.contenders[name]()
    if len(merged) != len(expected) or not all(map(torch.equal, merged, expected)):
        raise RuntimeError(f"{name} merged the rows unlike the stock model: it gets no number")
    return traffic.total()


def draw(rows: figures.Rows) -> Figure:
    """Draw a panel per metric, with a bar per case and contender."""
    panels = {
        "merge_ms": ("milliseconds", 1.0),
        "moved_bytes": ("GB read, written", 1e9),
        "extra_bytes": ("MB above the result", 1e6),
    }
    names = {
        "placed": "attach, placed",
        "stock": "stock merge",
        "off": "attach, placement off",
        "limit": "one pass over the rows",
    }
    looks = figures.styles(names)
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, [axes_of] = figures.open_figure(columns=len(panels), height=0.7 + 0.75 * len(cases), sharey=True)
    words_of_cases = [case.replace(", ", "\n").replace(" x ", " images x ") for case in cases]
    height = 0.8 / len(names)
    for axes, (metric, (label, unit)) in zip(axes_of, panels.items(), strict=True):
        for index, (name, words) in enumerate(names.items()):
            for row in rows:
                if (row["contender"], row["metric"]) == (name, metric):
                    place = cases.index(row["case"]) + (index + 0.5) * height - 0.4
                    error = {"xerr": figures.whiskers(row, 1 / unit), "ecolor": "black", "capsize": 2}
                    axes.barh(place, row["value"] / unit, height, **looks[name].bar(), **error, label=words)
                    figures.beside(axes, place, figures.number(row["value"] / unit), 7)
        axes.set_yticks(range(len(cases)), words_of_cases)
        axes.set(xlabel=label, ylim=(len(cases) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
    axes_of[0].set_ylabel("rows that are merged")
    placed, stock = (figures.values(rows, name, metric="merge_ms") for name in ("placed", "stock"))
    title = (
        f"A merge of cached rows by attach takes {figures.span(placed)} times one pass over them; the stock "
        f"merge takes {figures.span(stock)} times"
    )
    note = (
        "Less is better. One pass: look up the rows of text, copy the rows of the images to their tokens. MB "
        "above the result: the peak of a call's allocations without inputs_embeds and the deepstack levels. "
        f"{figures.SPREAD}"
    )
    return figures.finish(figure, rows, title, note)
