"""`WorthRule`: whether the transfer of an entry is worth its encode time."""

from __future__ import annotations

from collections.abc import Callable

from vitcache.tiers.encode_times import EncodeTimes
from vitcache.tiers.transfer_time import TransferTime

# While all entries are refused, one is let through this many seconds after the last measurement.
PROBE_S = 10.0

# The next one after a fetch that was let through and measured nothing, because the tier did not have it.
RETRY_S = 1.0


class WorthRule:
    """Compares the expected transfer time of an entry with its expected encode time, for one tier.

    An entry is worth its transfer if ``latency + bytes / bandwidth <= worth * encode time``. Both times are
    measured; see `TransferTime` and `EncodeTimes`. The wait in the queue of the tier is not a part of them.
    Stores are compared with the time of a fetch: an entry that is not worth a fetch is not worth a store.

    The thread that queues an entry for the tier asks the rule: the caller of `begin_fetch` for the first
    tier, so that an entry that is not worth it costs the caller no wait and the tier no call. Any thread may
    ask. Only the tier's worker calls `note_fetch`. No lock: two threads that ask at the same time may each
    let an entry through.

    Parameters
    ----------
    worth
        `Tier.worth`. None: each entry is worth it.
    element_bytes
        Bytes of an element of a row.
    clock
        Returns the time in seconds.

    Attributes
    ----------
    time
        The measured times of fetches; also measured if `worth` is None.
    """

    def __init__(
        self, worth: float | None, element_bytes: int, encodes: EncodeTimes, clock: Callable[[], float]
    ) -> None:
        self.worth = None if worth is None else float(worth)
        self.time = TransferTime()
        self.clock = clock
        self._element_bytes = element_bytes
        self._encodes = encodes
        self._fetch_at = self._store_at = clock() + PROBE_S

    def may_fetch(self, num_rows: int, row_width: int) -> bool:
        """Whether an entry is worth a fetch, or is fetched to measure the tier again."""
        if self._is_worth(num_rows, row_width):
            return True
        now = self.clock()
        if now < self._fetch_at:
            return False
        self._fetch_at = now + RETRY_S
        return True

    def may_store(self, num_rows: int, row_width: int) -> bool:
        """Whether an entry is worth a store, or is stored so that a later fetch can measure the tier."""
        if self._is_worth(num_rows, row_width):
            return True
        now = self.clock()
        if now < self._store_at:
            return False
        self._store_at = now + PROBE_S
        return True

    def note_fetch(self, num_bytes: int, seconds: float) -> None:
        """Note that a fetch of the tier returned `num_bytes` bytes in `seconds`."""
        if num_bytes > 0:
            self.time.note(num_bytes, seconds)
            self._fetch_at = self.clock() + PROBE_S

    def _is_worth(self, num_rows: int, row_width: int) -> bool:
        if self.worth is None:
            return True
        expected = self.time.expected_s(num_rows * row_width * self._element_bytes)
        return expected is None or 1e3 * expected <= self.worth * self._encodes.expected_ms(
            num_rows, row_width
        )
