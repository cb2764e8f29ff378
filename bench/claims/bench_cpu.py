"""Claim: on the CPU too, placing rows is no slower than slice copies and far ahead of ``masked_scatter``.

Always on the CPU, on a machine with a GPU as well: this is the backend that runs where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import vitcache
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer

NAME = "cpu"
CLAIMS_CPU = True
DEVICE = torch.device("cpu")
# Targets of the design: at most so many times the slice copies, at most this part of masked_scatter's time.
SLICE_FACTOR, MASKED_PART = 1.1, 1 / 20
FUSED = ("lookup-and-slices", "embed")  # those that build text rows, too
JUDGED_TOKENS = 8192  # below, a call's fixed cost is all there is


@dataclass(frozen=True)
class CpuCase:
    """`items` images in `num_tokens` tokens, half of which they fill."""

    items: int
    num_tokens: int
    hidden: int

    @property
    def name(self) -> str:
        """Images, rows and width."""
        return f"{self.items}x{self.num_tokens // 2 // self.items}x{self.hidden}"


CASES = {
    "full": [CpuCase(items, 8192, 3584) for items in (1, 16, 64)],
    "smoke": [CpuCase(4, 64, 32)],
}


def run_case(case: CpuCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields what it does next."""
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
            raise RuntimeError(f"{name} built other rows than the slice copies: it gets no number")
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
