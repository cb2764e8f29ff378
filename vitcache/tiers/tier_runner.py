"""`TierRunner`: the jobs of one tier, and the loop of the thread that runs them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import monotonic

from vitcache.device.locks import new_lock
from vitcache.tiers.books import Books
from vitcache.tiers.breaker import Breaker
from vitcache.tiers.fetch_run import run_fetch
from vitcache.tiers.job_queue import JobQueue
from vitcache.tiers.protocol import Tier
from vitcache.tiers.store_run import run_store
from vitcache.tiers.tier_counts import TierCounts
from vitcache.tiers.tier_engine import TierEngine
from vitcache.tiers.tier_jobs import Barrier, EraseJob, FetchJob, RevokeJob, StoreJob, Wanted, finish_all
from vitcache.tiers.worth import WorthRule

logger = logging.getLogger("vitcache.tiers")

_METRICS_S = 1.0  # between two reads of the tier's own counts


class TierRunner:
    """The jobs of one tier. Any thread calls `worthy`, `queue_fetch`, `offer`, `queue` and `note_late`.

    They never wait. The other methods are called by the worker's thread alone, which calls the tier without
    any lock. This object does not refer to the cache, so that the cache can be freed while the thread waits.

    Attributes
    ----------
    name, capacity_bytes
        Those of the tier.
    breaker, counts, rule
        Of the tier; any thread reads them.
    is_off
        Whether no thread runs the jobs any more: the cache was closed, or this is a forked child.
    stop_at
        Time of `time.monotonic` after which the worker begins no store; infinite until the cache is closed.
    """

    def __init__(self, tier: Tier, store_bytes: int, clock: Callable[[], float], rule: WorthRule) -> None:
        self.name = tier.name
        self.capacity_bytes = tier.capacity_bytes
        self.breaker = Breaker(clock)
        self.counts = TierCounts()
        self.rule = rule
        self.jobs = JobQueue(store_bytes)
        self.is_off = False
        self.is_ending = False
        self.stop_at = float("inf")
        self._clock = clock
        self._lock = new_lock()
        self._engine = TierEngine(tier, self.breaker, self.counts)
        self._metrics_at = float("-inf")

    @property
    def may_fetch(self) -> bool:
        """Whether `queue_fetch` would probably accept a fetch."""
        if self.jobs.fetches:
            self.note_late()
        return not self.is_off and self.breaker.may_admit

    def worthy(self, wanted: list[Wanted]) -> list[Wanted]:
        """Return the entries that are worth a fetch; the other ones are counted as not worth it."""
        if self.rule.worth is None:
            return wanted
        worthy = [each for each in wanted if self.rule.may_fetch(each.name[1], each.name[2])]
        if len(worthy) < len(wanted):
            self.counts.add("not_worth", len(wanted) - len(worthy))
        return worthy

    def queue_fetch(self, job: FetchJob) -> bool:
        """Queue a fetch. False, and the entries are counted as refused: breaker, full queue, or closed."""
        if self.jobs.fetches:
            self.note_late()
        admitted = None if self.is_off or self.is_ending else self.breaker.admit()
        if self.is_off or self.is_ending or admitted is False:
            self.counts.add("refused", len(job.wanted))
            return False
        job.is_probe = admitted is None
        job.deadline = self._clock() + job.timeout_s
        is_queued = False
        try:
            is_queued = self.jobs.add_fetch(job)
        finally:
            if not is_queued and job.is_probe:
                self.breaker.end_probe(False)
        if not is_queued:
            self.counts.add("refused", len(job.wanted))
        elif self.is_off:  # the thread has ended in between
            finish_all(job.wanted)
        return is_queued

    def offer(self, jobs: Sequence[StoreJob]) -> list[StoreJob]:
        """Queue stores, and return those that are refused: breaker, too many bytes, or closed.

        An open breaker may admit the first one as its probe: a cache that only stores has no fetch to try.
        Stores that are not worth it are counted, and neither queued nor returned.
        """
        jobs = self._worthy_stores(jobs)
        if self.is_off or self.is_ending or not jobs:
            refused = list(jobs)
        else:
            admitted = self.breaker.admit()
            if admitted is None:
                probe = jobs[0]._replace(is_probe=True)
                refused = [*self.jobs.add_stores([probe]), *jobs[1:]]
                if probe in refused:
                    self.breaker.end_probe(False)
            else:
                refused = self.jobs.add_stores(jobs) if admitted else list(jobs)
        if refused:
            self.counts.add("skipped_stores", len(refused))
        return refused

    def _worthy_stores(self, jobs: Sequence[StoreJob]) -> Sequence[StoreJob]:
        if self.rule.worth is None:
            return jobs
        worthy = [job for job in jobs if self.rule.may_store(job.num_rows, job.row_width)]
        if len(worthy) < len(jobs):
            self.counts.add("not_worth", len(jobs) - len(worthy))
        return worthy

    def queue(self, job: EraseJob | RevokeJob | Barrier) -> None:
        """Queue an erase or a revoke before, or a barrier behind, all that waits."""
        if isinstance(job, Barrier):
            self.jobs.add_barrier(job)
        else:
            self.jobs.add_urgent(job)
        if self.is_off:
            self._give_up()

    def note_late(self) -> None:
        """Open the breaker if a fetch is late."""
        now = self._clock()
        for job in tuple(self.jobs.fetches):
            if now < job.deadline:
                continue
            with self._lock:
                is_new = not job.is_late and job in self.jobs.fetches
                job.is_late = job.is_late or is_new
            if is_new:
                self.breaker.begin_late(job.is_probe)
                late = [wanted for wanted in job.wanted if not wanted.is_done]
                self.counts.add("late", len(late))
                for wanted in late:
                    wanted.is_late = True

    def open(self, books: Books) -> None:
        """Open the tier. If it fails, it is tried again as the breaker allows."""
        if self._engine.is_ready():
            self._engine.resolve(books.weights)
        self._read_metrics()

    def run_all(self, books: Books) -> None:
        """Run all jobs that wait, until the queue is empty."""
        while not self.is_off and (job := self.jobs.take()) is not None:
            try:
                self._run(job, books)
            except BaseException:
                logger.exception("a job of tier %r failed", self.name)
                self._finish(job)
            del job  # free its rows now: the queue may be empty for long
        self._read_metrics()

    def _run(self, job: EraseJob | RevokeJob | FetchJob | StoreJob | Barrier, books: Books) -> None:
        if isinstance(job, FetchJob):
            self._fetch(job, books)
        elif isinstance(job, StoreJob):
            self._store(job, books)
        elif isinstance(job, Barrier):
            self._read_metrics(now=True)
            job.finish()
        else:
            self._engine.erase(job)

    def _fetch(self, job: FetchJob, books: Books) -> None:
        has_answered: bool | None = None
        try:
            if self.is_ending:
                finish_all(job.wanted)
            else:
                has_answered = run_fetch(job, self._engine, books, self.counts, self.rule)
        finally:
            self.note_late()
            with self._lock:
                self.jobs.fetches.pop(job, None)
            if job.is_late:
                self.breaker.end_late()
            elif has_answered is not False:  # a failure has ended the probe
                if job.is_probe:
                    self.breaker.end_probe(bool(has_answered))
                if has_answered:
                    self._engine.succeed()

    def _store(self, job: StoreJob, books: Books) -> None:
        is_refused = self.breaker.is_open and not job.is_probe
        may_ask = not is_refused and monotonic() < self.stop_at
        has_answered: bool | None = None
        try:
            has_answered = run_store(job, self._engine, books, self.counts, may_ask=may_ask)
        finally:
            if job.is_probe and has_answered is not False:  # a failure has ended the probe
                self.breaker.end_probe(bool(has_answered))

    def end(self, books: Books) -> None:
        """Run the jobs that wait, except fetches, and close the tier. Later jobs are finished at once."""
        self.is_ending = True
        try:
            self.run_all(books)
            self._engine.settle()
            self._engine.close()
        finally:
            self.is_off = True
            self._give_up()

    def lose(self) -> None:
        """End all jobs in a forked child, which lacks the thread."""
        self.is_off = True
        self._give_up()

    def _give_up(self) -> None:
        for fetch in tuple(self.jobs.fetches):
            self._finish(fetch)
        self.jobs.fetches.clear()
        while (job := self.jobs.take()) is not None:
            self._finish(job)

    def _finish(self, job: EraseJob | RevokeJob | FetchJob | StoreJob | Barrier) -> None:
        if isinstance(job, FetchJob):
            finish_all([wanted for wanted in job.wanted if not wanted.is_done])
        elif isinstance(job, EraseJob | RevokeJob):
            if not job.is_done:
                job.error = RuntimeError(f"tier {self.name!r} is closed, or belongs to another process")
                job.finish()
        elif isinstance(job, Barrier):
            job.finish()

    def _read_metrics(self, now: bool = False) -> None:
        if now or self._clock() >= self._metrics_at:
            self._metrics_at = self._clock() + _METRICS_S
            self._engine.read_metrics()
