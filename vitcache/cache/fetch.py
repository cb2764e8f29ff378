"""`Fetch`: the handle of entries that are copied from tiers below the host tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic

from vitcache._native import Ledger
from vitcache.arguments import to_timeout
from vitcache.handles import describe_count, described, refuse_copies
from vitcache.tiers.tier_jobs import Wanted


class Fetch:
    """The handle of one fetch; `EmbeddingCache.begin_fetch` returns it. Any thread may use it.

    A fetch continues without its handle: rows that arrive enter the host tier, also without a `wait`.

    Examples
    --------
    >>> import torch
    >>> from vitcache import EmbeddingCache
    >>> from vitcache.tiers import MemoryTier
    >>> cache = EmbeddingCache(
    ...     4, dtype=torch.float32, device="cpu", device_bytes=64, host_bytes=64, page_rows=4,
    ...     tiers=[MemoryTier(1 << 20)],
    ... )
    >>> fetch = cache.begin_fetch([bytes(32)], 4)  # now do other work
    >>> fetch.wait(timeout_s=60), fetch.done
    ([False], True)
    >>> cache.close()
    """

    __slots__ = ("_counted", "_end", "_keys", "_ledger", "_note_late", "_wanted")

    def __init__(
        self,
        keys: Sequence[bytes],
        wanted: list[Wanted],
        end: float,
        ledger: Ledger,
        note_late: Callable[[], None],
    ) -> None:
        self._keys = keys
        self._wanted = tuple(wanted)
        self._counted = wanted  # those that count this caller: none after `cancel`
        self._end = end
        self._ledger = ledger
        self._note_late = note_late

    @property
    def done(self) -> bool:
        """Whether every entry was fetched, or found in no tier, or the tiers were not asked.

        Also after `cancel`: then a done fetch occupies no pages beside those of rows that it has inserted.
        """
        return all(wanted.is_done for wanted in self._wanted)

    def wait(self, timeout_s: float | None = None) -> list[bool]:
        """Wait until the fetch is done, or the time is over, and return which keys are in the cache.

        Parameters
        ----------
        timeout_s
            Seconds to wait at most. None: until the cache's `fetch_timeout_s` after `begin_fetch` is over. A
            fetch that was cancelled does not wait.

        Returns
        -------
        list of bool
            For each key of `begin_fetch`, whether the cache has an entry under it now. A late row still
            enters the cache when it arrives.

        Raises
        ------
        ValueError
            If `timeout_s` is negative, infinite or NaN.
        TypeError
            If `timeout_s` is neither None nor a number, or is a bool.
        RuntimeError
            If the cache was closed.
        """
        timeout_s = to_timeout("timeout_s", timeout_s)
        end = self._end if timeout_s is None else monotonic() + timeout_s
        if not all(wanted.wait(end) for wanted in self._counted):
            self._note_late()
        return [self._ledger.contains(key) for key in self._keys]

    def cancel(self) -> None:
        """Do not fetch the entries that the tier was not asked for yet, unless another call wants them.

        A second call does nothing. Entries that are being copied still enter the cache.
        """
        while self._counted:
            self._counted.pop().num_waiting -= 1

    __reduce_ex__ = refuse_copies("it is the handle of one fetch, and any thread may use it")

    @described
    def __repr__(self) -> str:
        left = sum(not wanted.is_done for wanted in self._wanted)
        return f"of {describe_count(len(self._keys), 'key')}, {f'{left} not done' if left else 'done'}"
