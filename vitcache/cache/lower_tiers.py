"""`LowerTiers`: the tiers below the host tier of one cache, with their workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

import torch

from vitcache.arguments import to_bytes
from vitcache.cache.call_arguments import MS_PER_ROW
from vitcache.cache.coordinator import CacheCoordinator
from vitcache.cache.fetch import Fetch
from vitcache.cache.offers import Offers
from vitcache.cache.stats import TierStats
from vitcache.cache.tier_books import TierBooks
from vitcache.device.locks import new_lock
from vitcache.tiers.encode_times import EncodeTimes
from vitcache.tiers.protocol import Tier
from vitcache.tiers.tier_jobs import (
    Barrier,
    EraseJob,
    RevokeJob,
    Wanted,
    WantedName,
    WantedTable,
    finish_all,
    send,
)
from vitcache.tiers.tier_runner import logger
from vitcache.tiers.tier_worker import CLOSE_S, TierWorker
from vitcache.tiers.weights_name import CurrentWeights, Weights
from vitcache.tiers.worth import WorthRule
from vitcache.tiers.write_back import WriteBack

# How long `advance_epoch` waits until the tiers have revoked the name of the old weights.
REVOKE_S = 1.0


class LowerTiers:
    """The tiers of one cache, the nearest first. Any thread may call any method; a hit calls none.

    `begin_fetch` and `discard` never wait. No lock is held while a tier is called: only the workers'
    threads call tiers.

    Parameters
    ----------
    weights_name
        The name of the weights of the first epoch, or None for a random name.
    fetch_timeout_s
        Seconds after which a fetch is late, and after which `Fetch.wait` returns.

    Attributes
    ----------
    encode_times
        The measured encode times of the cache's rows; None if no tier has a `worth`.
    """

    def __init__(
        self,
        tiers: Sequence[Tier],
        coordinator: CacheCoordinator,
        device: torch.device,
        dtype: torch.dtype,
        weights_name: str | bytes | None,
        write_back: WriteBack,
        fetch_timeout_s: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._ledger = coordinator.ledger
        self._coordinator = coordinator
        self._dtype = dtype
        self._fetch_timeout_s = fetch_timeout_s
        self._current = CurrentWeights(Weights(weights_name, dtype, self._ledger.epoch))
        self._to_revoke: dict[Weights, None] = {}
        self._wanted = WantedTable()
        self._is_closed = False
        self._changing = new_lock()  # held while the epoch and the weights change
        queue_bytes = to_bytes("queue_bytes", write_back.queue_bytes, 0)
        encodes = EncodeTimes(MS_PER_ROW, device)
        self._workers: list[TierWorker] = []
        for tier in tiers:
            books = TierBooks(coordinator, self._current, device, dtype, write_back.from_device)
            rule = WorthRule(tier.worth, dtype.itemsize, encodes, clock)
            self._workers.append(TierWorker(tier, books, queue_bytes, clock, rule))
        self._runners = [worker.runner for worker in self._workers]
        has_rule = any(runner.rule.worth is not None for runner in self._runners)
        self.encode_times = encodes if has_rule else None
        coordinator.offers = Offers(self._runners, self._current)
        self._ledger.set_write_back(write_back.hits)

    def begin_fetch(
        self,
        keys: Sequence[bytes],
        num_rows: Sequence[int],
        row_widths: Sequence[int],
        tenant: bytes,
        timeout_s: float | None = None,
        may_evict: bool = True,
    ) -> Fetch:
        """Ask the tiers for the entries that are not in the cache, and return at once.

        `tenant` is a digest. `timeout_s`: seconds that the caller will wait; a tier is not late earlier.
        `may_evict`: whether host entries may be evicted for the rows.
        """
        self._ledger.check_open()
        limit = self._fetch_timeout_s if timeout_s is None else timeout_s
        contains = self._ledger.contains
        names = [
            (key, rows, width, tenant)
            for key, rows, width in zip(keys, num_rows, row_widths, strict=True)
            if rows and not contains(key)
        ]
        wanted: list[Wanted] = []
        if names:
            if any(runner.may_fetch for runner in self._runners):
                self._want(names, wanted, max(limit, self._fetch_timeout_s), may_evict)
            else:
                for runner in self._runners:
                    runner.counts.add("refused", len(names))
        # The time begins now, so that the tiers' deadlines are not later than that of the caller.
        return Fetch(keys, wanted, monotonic() + limit, self._ledger, self.note_late)

    def _want(
        self, names: Sequence[WantedName], wanted: list[Wanted], timeout_s: float, may_evict: bool
    ) -> None:
        """Send entries to the tiers that are not being fetched yet, and add all of them to `wanted`."""
        weights = self._weights()
        new: dict[WantedName, Wanted] = {}
        is_sent = False
        try:
            for name in names:
                if name in new:
                    continue
                each = self._wanted.find(name)
                if each is None or each.is_void or each.is_late or each.weights is not weights:
                    each = new[name] = Wanted(name, weights, self._wanted, may_evict)
                else:
                    each.num_waiting += 1
                wanted.append(each)
            self._wanted.add(list(new.values()))  # before they are sent: `_drop` must find them
            if new:
                send(list(new.values()), weights, self._runners, timeout_s)
            is_sent = True
        finally:
            if not is_sent:  # interrupted
                for each in wanted:
                    each.num_waiting -= 1
                finish_all(list(new.values()))

    def note_late(self) -> None:
        """Open the breakers of tiers that are late."""
        for runner in self._runners:
            runner.note_late()

    def discard(self, key: bytes) -> bool:
        """Drop an entry here, and let the tiers erase it. Returns whether it was dropped here."""
        self._drop(key, None)
        is_dropped = self._ledger.discard(key)
        # After the drop: a store that runs before the erase is erased, and a later one finds no entry.
        self._erase(key, None)
        self._drop(key, None)  # and fetches that began in between
        return is_dropped

    def forget(
        self, timeout_s: float | None, *, key: bytes | None = None, tenant: bytes | None = None
    ) -> int:
        """Drop the entries of a key or a tenant here, and wait until the tiers have erased them.

        Returns how many were dropped here, and erased in each tier, together. Raises as
        `EmbeddingCache.forget`.
        """
        num_dropped = self._drop_here(key, tenant)
        jobs = self._erase(key, tenant)
        try:
            num_erased = self._wait_erased(jobs, timeout_s)
        finally:
            num_dropped += self._drop_here(key, tenant)  # rows that a tier returned before the erase
        return num_dropped + num_erased

    def _drop_here(self, key: bytes | None, tenant: bytes | None) -> int:
        self._drop(key, tenant)
        return self._ledger.forget(key) if key is not None else self._ledger.forget_tenant(tenant)

    def _drop(self, key: bytes | None, tenant: bytes | None) -> None:
        """Let entries that are being fetched not enter the cache, before the ledger drops those it knows."""
        for wanted in self._wanted.all():
            if key in (None, wanted.name[0]) and tenant in (None, wanted.name[3]):
                wanted.is_dropped = True

    def _erase(self, key: bytes | None, tenant: bytes | None) -> list[EraseJob]:
        """Queue the erasure of entries in every tier. Returns one job per tier."""
        jobs = [EraseJob(key, tenant) for _ in self._runners]
        for runner, job in zip(self._runners, jobs, strict=True):
            runner.queue(job)
        return jobs

    def _wait_erased(self, jobs: Sequence[EraseJob], timeout_s: float | None) -> int:
        """Wait for the erasure, and return the number of erased entries.

        Raises
        ------
        TimeoutError
            If a tier has not erased within `timeout_s` seconds.
        RuntimeError
            If a tier could not erase.
        """
        end = self._end(timeout_s)
        for runner, job in zip(self._runners, jobs, strict=True):
            if not job.wait(end):
                limit = "before its own call returns" if self._is_in_tier else f"within {timeout_s:g} s"
                raise TimeoutError(f"tier {runner.name!r} has not erased the rows {limit}")
        for runner, job in zip(self._runners, jobs, strict=True):
            if job.error is not None:
                raise RuntimeError(f"tier {runner.name!r} could not erase the rows") from job.error
        return sum(job.num_erased for job in jobs)

    def advance(self, advance: Callable[[], None], weights_name: str | bytes | None) -> None:
        """Call `advance`, which begins a new epoch, and name the weights of that epoch.

        Rows of earlier epochs are out of reach in this process at once. Then the tiers revoke the old name,
        so that no later process finds them; the call waits for that, but not for long.
        """
        with self._changing:
            old = self._current.weights
            if old.is_named:
                self._to_revoke[old] = None  # also if an interrupt ends this call: the next one revokes it
            advance()
            jobs = self._revoke()
            # After the revoke was queued: no later fetch of the same name can find earlier entries.
            self._current.weights = Weights(weights_name, self._dtype, self._ledger.epoch)
        end = monotonic() + REVOKE_S
        for worker, job in jobs:
            if not worker.is_own_thread and not (job.wait(end) and job.error is None):
                logger.error(
                    "tier %r has not revoked the name of the old weights yet: after a restart, its entries "
                    "of before may be found under that name",
                    worker.runner.name,
                )

    def _revoke(self) -> list[tuple[TierWorker, RevokeJob]]:
        jobs = []
        for old in tuple(self._to_revoke):
            for worker in self._workers:
                job = RevokeJob(old)
                worker.runner.queue(job)
                jobs.append((worker, job))
            self._to_revoke.pop(old, None)
        return jobs

    def flush(self, timeout_s: float | None) -> bool:
        """Wait until the stores that are queued now are done. False: they were not within `timeout_s`."""
        self._coordinator.drain()
        end = self._end(timeout_s)
        barriers = [Barrier() for _ in self._runners]
        for runner, barrier in zip(self._runners, barriers, strict=True):
            runner.queue(barrier)
        return all(barrier.wait(end) for barrier in barriers)

    def stats(self) -> tuple[TierStats, ...]:
        """Return the counts of each tier. Calls no tier."""
        return tuple(
            TierStats(
                name=runner.name,
                capacity_bytes=runner.capacity_bytes,
                fetch_seconds=counts.pop("fetch_us") / 1e6,
                bytes_per_second=runner.rule.time.bytes_per_second,
                latency_seconds=runner.rule.time.latency_s,
                **counts,
                is_open=runner.breaker.is_open,
                openings=runner.breaker.openings,
                own=runner.counts.own,
            )
            for runner, counts in ((runner, runner.counts.copy()) for runner in self._runners)
        )

    def close(self) -> None:
        """Finish the stores that wait and close the tiers, within `CLOSE_S` seconds. Fetches are missed."""
        if self._is_closed:
            return
        with suppress(RuntimeError):  # the ledger was closed by a call that was interrupted
            self._coordinator.drain()
        with self._changing:
            self._revoke()
        for worker in self._workers:
            worker.begin_close()
        end = monotonic() + CLOSE_S
        for worker in self._workers:
            if not worker.is_own_thread and not worker.join(end):
                logger.error(
                    "tier %r was not closed within %g s; its thread and its memory are left behind",
                    worker.runner.name,
                    CLOSE_S,
                )
        self._is_closed = True

    @property
    def _is_in_tier(self) -> bool:
        """Whether a tier has called the cache: a wait for this tier would not end."""
        return any(worker.is_own_thread for worker in self._workers)

    def _end(self, timeout_s: float | None) -> float:
        """The time until which a call waits for the tiers."""
        if self._is_in_tier:
            return monotonic()
        return float("inf") if timeout_s is None else monotonic() + timeout_s

    def _weights(self) -> Weights:
        """Return the current weights. After an interrupted `advance` they have a random name."""
        weights = self._current.weights
        epoch = self._ledger.epoch
        if weights.epoch != epoch:
            with self._changing:
                weights = self._current.weights
                if weights.epoch != self._ledger.epoch:
                    weights = self._current.weights = Weights(None, self._dtype, self._ledger.epoch)
        return weights
