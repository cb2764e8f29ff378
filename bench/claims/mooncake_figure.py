"""The figure of the bench `mooncake`: a panel for each of its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitcache.bench.claims.store_lookups import EXISTS
from vitcache.bench.claims.store_transfers import SCATTERED, TIER
from vitcache.bench.claims.tier_waits import FETCH
from vitcache.bench.claims.tiers_figure import Panel, draw_panels
from vitcache.bench.harness import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    Panel("fetch_gb_per_s", "fetch (GB/s; more is better)", " GB/s", at_least=True),
    Panel("store_gb_per_s", "store of a new entry (GB/s; more is better)", " GB/s", at_least=True),
    Panel("exists_us", "look-up (microseconds)", " us"),
    Panel("past_deadline_us", "caller's time past its deadline, master stopped (microseconds)", " us"),
    Panel("refused_us", "begin_fetch (microseconds)", " us", is_log=True),
    Panel("step_us", "prefetch and step, each image is new (milliseconds)", " ms", scale=1e-3),
)


def draw(rows: figures.Rows) -> Figure:
    """Draw the results, each metric in a panel of its own."""
    note = (
        f"A master and a node on the same machine, on loopback. {SCATTERED}: the store's own call with the "
        f"same pages, without header and checksum. Black: a target. {figures.SPREAD}"
    )
    return draw_panels(rows, _PANELS, title_of(rows), note)


def title_of(rows: figures.Rows) -> str:
    """Return the claim: rates, waits and look-ups of this file."""
    parts = []
    shares = figures.values(rows, TIER, metric="fetch_gb_per_s")
    if shares:
        parts.append(
            f"A tier of a Mooncake store reads at {figures.span(shares)} of the rate of the store's calls"
        )
    past = figures.values(rows, FETCH, "value", "past_deadline_us")
    if past:
        parts.append(f"a master that is stopped delays a caller {max(past) / 1e3:.2f} ms past its deadline")
    found = figures.values(rows, EXISTS, "value", "exists_us")
    if found:
        parts.append(f"a look-up takes at most {max(found):.0f} microseconds")
    return "; ".join(parts)
