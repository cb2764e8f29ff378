"""The log lines of rows that a cache rejects: one per reason, as a full cache may reject many rows."""

from __future__ import annotations

from collections.abc import Sequence

from vitcache._native import Ledger, Pending, Tier
from vitcache.pages.reservation import logger


class RefusalLog:
    """Logs the first refusal of each reason. All refusals are counted in `CacheStats.rejections`.

    The reasons are, per tier: more pages than the tier has, and more than are free or evictable; rows of an
    earlier epoch; and rows that were forgotten while they were written. Any thread may call.

    Attributes
    ----------
    logged
        The reasons that were logged.
    """

    def __init__(self) -> None:
        self.logged: dict[str, object] = {}

    def warn_write(
        self,
        ledger: Ledger,
        tiers: Sequence[Tier],
        num_rows: int,
        row_width: int,
        epoch: int | None,
        *,
        of_room: bool = True,
    ) -> None:
        """Log that the ledger began no write of rows of `epoch` to `tiers`; None: the current epoch.

        `of_room`: whether too few free or evictable pages are a reason to log.
        """
        # Free pages of the other tier would not help if the rows need more pages than a tier has.
        tier = min(
            tiers,
            key=lambda each: (each.pages_for(num_rows, row_width) <= each.num_pages, each.num_available),
        )
        current = ledger.last_epoch
        if epoch is not None and epoch != current:
            kind, reason = "epoch", describe_epochs(epoch, current)
        elif tier.pages_for(num_rows, row_width) > tier.num_pages:
            kind, reason = f"size {tier.name}", f"raise {tier.name}_bytes"
        elif not of_room:
            return
        else:
            kind, reason = f"room {tier.name}", f"raise {tier.name}_bytes or release leases"
        self._warn(kind, num_rows, row_width, tier, reason)

    def warn_commit(self, pending: Pending, epoch: int) -> None:
        """Log that a write was not inserted: it was forgotten, or is not of `epoch`, the current epoch."""
        kind, reason = "epoch", describe_epochs(pending.epoch, epoch)
        if pending.epoch == epoch and pending.is_rejected:
            kind, reason = "forgotten", "their key or their tenant was forgotten"
        self._warn(kind, pending.num_rows, pending.row_width, pending.tier, reason)

    def _warn(self, kind: str, num_rows: int, row_width: int, tier: Tier, reason: str) -> None:
        mine = object()
        if self.logged.setdefault(kind, mine) is not mine:
            return
        logger.warning(
            "put of %d rows rejected: they need %d bytes; the %s tier has %d bytes, %d of them free or "
            "evictable; %s; further rejections for this reason are only counted, in stats().rejections",
            num_rows,
            tier.pages_for(num_rows, row_width) * tier.page_bytes,
            tier.name,
            tier.num_pages * tier.page_bytes,
            tier.num_available * tier.page_bytes,
            reason,
        )


def describe_epochs(rows_epoch: int, cache_epoch: int) -> str:
    """Return the reason why rows of another epoch than the cache's are rejected."""
    return f"the rows are of epoch {rows_epoch}, the cache is in epoch {cache_epoch}"
