"""Claim: on the CPU, placement takes about the time of slice copies, and far less than ``masked_scatter``.

This bench always runs on the CPU, even if the machine has a GPU: it measures the CPU backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

import vitcache
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "cpu"
CLAIMS_CPU = True
DEVICE = torch.device("cpu")
# Targets of the design for the time: at most SLICE_FACTOR times the slice copies, and at most MASKED_PART of
# masked_scatter.
SLICE_FACTOR, MASKED_PART = 1.1, 1 / 20
FUSED = ("lookup-and-slices", "embed")  # contenders that also build the text rows
JUDGED_TOKENS = 8192  # with fewer tokens, the time is mainly the fixed cost of a call


@dataclass(frozen=True)
class CpuCase:
    """`items` images in `num_tokens` tokens; the images fill half of the tokens."""

    items: int
    num_tokens: int
    hidden: int

    @property
    def name(self) -> str:
        """The number of images, the rows of each, and the width of a row."""
        return f"{self.items}x{self.num_tokens // 2 // self.items}x{self.hidden}"


CASES = {
    "full": [CpuCase(items, 8192, 3584) for items in (1, 16, 64)],
    "smoke": [CpuCase(4, 64, 32)],
}


def run_case(case: CpuCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before the measurement."""
    pitch, rows = case.num_tokens // case.items, case.num_tokens // 2 // case.items
    items = [torch.randn(rows, case.hidden, dtype=torch.bfloat16) for _ in range(case.items)]
    spans = [vitcache.Span(item * pitch + pitch // 4, rows) for item in range(case.items)]
    base = torch.randn(case.num_tokens, case.hidden, dtype=torch.bfloat16)
    weight, ids = (
        torch.randn(30_000, case.hidden, dtype=torch.bfloat16),
        torch.randint(0, 30_000, (len(base),)),
    )
    mask, packed = torch.zeros(len(base), 1, dtype=torch.bool), torch.cat(items)
    for span in spans:
        mask[span.start : span.stop] = True

    def slices(out: torch.Tensor) -> torch.Tensor:
        for span, source in zip(spans, items, strict=True):
            out[span.start : span.stop].copy_(source)
        return out

    destination = base.clone()
    contenders: dict[str, Callable[[], torch.Tensor]] = {
        "slice-loop": lambda: slices(destination),
        "masked-scatter": lambda: base.masked_scatter(mask.expand_as(base), packed),
        "scatter": lambda: vitcache.scatter_embeddings(destination, items, spans),
        "lookup-and-slices": lambda: slices(torch.nn.functional.embedding(ids, weight)),
        "embed": lambda: vitcache.embed_tokens(ids, weight, items, spans),
    }
    for name, run in contenders.items():
        if not torch.equal(run(), slices((weight[ids] if name in FUSED else base).clone())):
            raise RuntimeError(f"{name} built rows unlike those of the slice copies: it gets no number")
    yield "all in turns"
    samples = timer.rounds_us(contenders)
    medians = {name: sample.value for name, sample in samples.items()}
    limits = {
        "scatter": (
            SLICE_FACTOR,
            min(SLICE_FACTOR * medians["slice-loop"], MASKED_PART * medians["masked-scatter"]),
        ),
        "embed": (1.0, medians["lookup-and-slices"]),
    }
    for name, sample in samples.items():
        reference = "lookup-and-slices" if name in FUSED else "slice-loop"
        judged = name in limits and case.num_tokens >= JUDGED_TOKENS
        target, limit = limits[name] if judged else (None, None)
        recorder.add(
            case.name,
            name,
            "host_us",
            "us",
            sample,
            against=(reference, medians[reference]),
            target=target,
            limit=limit,
        )


def draw(rows: figures.Rows) -> Figure:
    """Draw the milliseconds of each contender: left, image rows alone; right, the rows of text as well."""
    names = {
        "scatter": "scatter_embeddings",
        "slice-loop": "a slice copy per image",
        "masked-scatter": "masked_scatter",
        "embed": "embed_tokens",
        "lookup-and-slices": "embedding, then slice copies",
    }
    looks = figures.styles(names.values())
    cases = list(dict.fromkeys(row["case"] for row in rows))
    words = dict(zip(cases, ("{} x {} rows".format(*case.split("x")) for case in cases), strict=True))
    rows = [{**row, "contender": names[row["contender"]], "case": words[row["case"]]} for row in rows]
    fused = [names[name] for name in FUSED]
    figure, [panels] = figures.open_figure(columns=2, height=0.7 + 0.75 * len(cases), sharey=True)
    for axes, is_fused in zip(panels, (False, True), strict=True):
        some = [row for row in rows if (row["contender"] in fused) == is_fused]
        limits = {(row["case"], row["ratio_to"]): row["value"] / row["ratio"] / 1e3 for row in some}
        targets = {
            (row["case"], row["contender"]): row["target"] * limits[row["case"], row["ratio_to"]]
            for row in some
            if row["target"] is not None
        }
        axes.set_xscale("linear" if is_fused else "log")
        figures.compare(axes, some, looks, scale=1e-3, unit=" ms", targets=targets)
        if is_fused:
            axes.set_xlim(left=0)
        if not is_fused:
            figures.log_ticks(axes)
        axes.set_xlabel("milliseconds; less is better")
        axes.set_title("rows of images and of text" if is_fused else "rows of images")
    panels[0].set_ylabel("images x rows of each")
    slices, whole = figures.values(rows, names["scatter"]), figures.values(rows, names["embed"])
    masked = [
        by / to
        for by, to in zip(
            figures.values(rows, names["masked-scatter"], "value"),
            figures.values(rows, names["scatter"], "value"),
            strict=True,
        )
    ]
    title = (
        f"On a CPU, scatter_embeddings takes {figures.span(slices)} times slice copies (masked_scatter "
        f"{figures.span(masked, '{:.0f}')} times as long), embed_tokens {figures.span(whole)} times look-up "
        "and slice copies"
    )
    width = cases[0].split("x")[-1]
    note = f"Rows of {width} elements of bfloat16; half of the tokens are image tokens. {figures.SPREAD}"
    return figures.finish(figure, rows, title, note)
