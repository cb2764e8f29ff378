"""Orders of the scheduler for one step of a worker, and the worker's report about them.

Both travel between processes, so they contain only plain values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class ItemKey(NamedTuple):
    """Names the rows of one item: the request's `cache_salt`, and vLLM's identifier of the item."""

    salt: str
    identifier: str


class LoadOrder(NamedTuple):
    """Copy an entry of the host tier to device pages."""

    key: ItemKey
    num_rows: int


class SaveOrder(NamedTuple):
    """Write the rows that the encoder makes in this step to at most `num_pages` device pages."""

    key: ItemKey
    num_rows: int
    num_pages: int
    to_host: bool  # also copy the rows to free pages of the host tier


@dataclass
class StepOrders:
    """Orders of one step. A worker executes them in the order of the fields.

    Attributes
    ----------
    step, epoch
        Number of the step, and number of the resets before it. If the latter has changed, the worker first
        drops all rows.
    releases
        Identifiers that vLLM's encoder cache no longer contains.
    host_drops
        Entries that stay in the device tier and lose their host copy.
    drops
        Entries that leave the cache.
    demotions
        Entries that move from the device tier to the host tier. The dict is an ordered set.
    loads, saves
        By identifier. Loads are queued before the encoder runs, saves after it.
    offers
        Entries to offer to the lower tiers, after the saves.
    runs_encoder
        Whether vLLM has scheduled its encoder for this step.
    reads_items
        Whether the step reads rows of items, those of hits included.
    """

    step: int = 0
    epoch: int = 0
    releases: list[str] = field(default_factory=list)
    host_drops: dict[ItemKey, None] = field(default_factory=dict)
    drops: dict[ItemKey, None] = field(default_factory=dict)
    demotions: dict[ItemKey, None] = field(default_factory=dict)
    loads: dict[str, LoadOrder] = field(default_factory=dict)
    saves: dict[str, SaveOrder] = field(default_factory=dict)
    offers: dict[ItemKey, None] = field(default_factory=dict)
    runs_encoder: bool = False
    reads_items: bool = False


@dataclass
class StepReport:
    """The results of one step of a worker.

    Attributes
    ----------
    step, epoch
        As in the orders.
    saved
        Entries whose rows are in the device tier. All other saves of the step were refused.
    lost
        Identifiers that the worker was to load and does not have. vLLM's encoder cache contains zeros in
        their place.
    missing
        Entries that the worker was to demote and does not have.
    is_cleared
        Whether the worker's encoder cache was cleared without a reset of the scheduler, as by
        `reload_weights`. The worker has dropped all rows.
    encoded_rows
        Number of rows in whose encode time `counts` has the seconds `encode_seconds`.
    counts
        Counters of `vitcache.adapters.vllm.counts`, since the last report.
    """

    step: int
    epoch: int
    saved: set[ItemKey] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    missing: set[ItemKey] = field(default_factory=set)
    is_cleared: bool = False
    encoded_rows: int = 0
    counts: dict[str, float] = field(default_factory=dict)

    def merge(self, other: StepReport) -> StepReport:
        """Return the report of two ranks: an entry is saved if both have it, and lost if one lacks it.

        The counters are those of the first report: each rank holds the same entries, and only the first rank
        reports counters. If the two reports are of different steps, nothing counts as saved.
        """
        is_same = (self.step, self.epoch) == (other.step, other.epoch)
        return StepReport(
            max(self.step, other.step),
            max(self.epoch, other.epoch),
            self.saved & other.saved if is_same else set(),
            self.lost | other.lost,
            self.missing | other.missing,
            self.is_cleared or other.is_cleared,
            self.encoded_rows,
            self.counts,
        )
