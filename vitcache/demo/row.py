"""`Row`: the results of one turn of the demo's conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

TIMES = ("vision_ms_stock", "vision_ms", "ttft_ms_stock", "ttft_ms", "ttft_ms_attach")


@dataclass(frozen=True)
class Row:
    """The results of one turn: the stock model (`_stock`), `attach` (`_attach`) and the pipeline (no suffix).

    The reference is the stock model's logits with its images encoded one at a time. `equal` says
    whether the logits of both `attach` and the pipeline equal the reference bit for bit; `equal_attach` is
    for `attach` only. `spread_stock` is the largest difference of a logit between the reference and the
    stock model with its images encoded in one batch. Encoded images and bytes of host pixels are counted at
    the vision tower. No hook is set on the stock model, so its numbers are those of its input. `placed_calls`
    and `unplaced_calls` are those of `vitcache.AttachStats`, for this turn. A time is the median of all runs
    of the conversation; `samples` has the time of each run, by the name of the time.
    """

    turn: int
    images: int
    encoded_stock: int
    encoded: int
    encoded_attach: int
    hits: int
    hits_attach: int
    vision_ms_stock: float
    vision_ms: float
    ttft_ms_stock: float
    ttft_ms: float
    ttft_ms_attach: float
    pixel_bytes_stock: int
    pixel_bytes: int
    pixel_bytes_attach: int
    equal: bool
    equal_attach: bool
    spread_stock: float
    placed_calls_attach: int
    unplaced_calls_attach: dict[str, int]
    samples: dict[str, list[float]] = field(default_factory=dict)

    def with_runs(self, times: Sequence[Mapping[str, float]]) -> Row:
        """Return this row with the medians of its own times, of the first run, and of these times."""
        samples = {name: [getattr(self, name), *(run[name] for run in times)] for name in TIMES}
        medians = {name: median(values) for name, values in samples.items()}
        return replace(self, **medians, samples=samples)
