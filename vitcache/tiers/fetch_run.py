"""`run_fetch`: asks one tier for the entries of a fetch, and enters them into the cache."""

from __future__ import annotations

from collections.abc import Sequence

from vitcache.pages.reservation import Reservation
from vitcache.tiers.books import Books
from vitcache.tiers.protocol import EntryName, FetchOutcome, Transfer
from vitcache.tiers.tier_counts import TierCounts
from vitcache.tiers.tier_engine import TierEngine
from vitcache.tiers.tier_jobs import FetchJob, Wanted, finish_all, send
from vitcache.tiers.worth import WorthRule


def run_fetch(
    job: FetchJob, engine: TierEngine, books: Books, counts: TierCounts, rule: WorthRule
) -> bool | None:
    """Fetch the entries of a job, and pass those on that the tier misses.

    Runs on the worker's thread. Every entry is finished, or passed on, also if the tier fails.

    Returns whether the tier answered; None: it was not asked.
    """
    run = _FetchRun(job, engine, books, counts, rule)
    left = [wanted for wanted in job.wanted if not wanted.is_void]
    finish_all([wanted for wanted in job.wanted if wanted.is_void and not wanted.is_done])
    try:
        if not left or not books.is_current(job.weights):
            finish_all(left)
            return None
        if not engine.is_ready(job.is_probe):
            counts.add("refused", len(left))
            run.pass_on(left)
            return False
        present = run.find(left)
        for batch in books.batches(present):
            if not run.fetch(batch):
                run.pass_on([wanted for wanted in present if not wanted.is_done])
                run.end()
                return False
        return not run.has_failed
    finally:
        run.end()


class _FetchRun:
    """One run of `run_fetch`. `has_failed`: whether a call of the tier failed."""

    def __init__(
        self, job: FetchJob, engine: TierEngine, books: Books, counts: TierCounts, rule: WorthRule
    ) -> None:
        self.has_failed = False
        self._job = job
        self._engine = engine
        self._books = books
        self._counts = counts
        self._rule = rule
        self._must_recycle = False
        self._passed: set[Wanted] = set()
        self._names: dict[Wanted, EntryName] = {}

    def find(self, wanted: list[Wanted]) -> list[Wanted]:
        """Return the entries that the tier probably has, and pass the other ones on."""
        try:
            self._names = {each: self._name(each) for each in wanted}
            exist = self._engine.tier.exists(list(self._names.values()))
            found = [each for each, exists in zip(wanted, exist, strict=True) if exists]
        except BaseException as error:
            self._fail("exists", error)
            found = []
        else:
            self._counts.add("misses", len(wanted) - len(found))
        present = set(found)
        self.pass_on([each for each in wanted if each not in present])
        return found

    def fetch(self, batch: list[Wanted]) -> bool:
        """Fetch entries into host pages. False: the tier failed, and must not be asked for more."""
        reserved: list[tuple[Wanted, Reservation]] = []
        transfers: list[Transfer] = []
        for wanted in batch:
            rows = None if wanted.is_void else self._books.reserve(wanted)
            if rows is None:
                if not wanted.is_void:
                    self._counts.add("not_admitted")
                wanted.finish()
            else:
                reserved.append((wanted, rows.reservation))
                transfers.append(Transfer(self._names[wanted], rows.parts))
        if not transfers:
            return True
        try:
            self._engine.register(self._books.memory)
            start = self._rule.clock()
            outcomes = self._engine.tier.fetch(transfers)
            seconds = self._rule.clock() - start
            if len(outcomes) != len(transfers):
                raise ValueError(f"{len(transfers)} fetches have {len(outcomes)} outcomes")
        except BaseException as error:
            self._fail("fetch", error)
            for wanted, reservation in reserved:
                self._hold(wanted, reservation)
            return False
        self._measure(transfers, outcomes, seconds)
        missed = []
        for (wanted, reservation), outcome in zip(reserved, outcomes, strict=True):
            if outcome is FetchOutcome.HIT:
                self._insert(wanted, reservation)
                continue
            missed.append(wanted)
            if outcome is FetchOutcome.MISS or outcome is FetchOutcome.DAMAGED:
                self._counts.add("misses" if outcome is FetchOutcome.MISS else "damaged")
                reservation.cancel()
            else:
                self._hold(wanted, reservation)
                self._fail("fetch", f"an outcome is {outcome!r}: the tier may still write the rows")
        self.pass_on(missed)
        return not self._must_recycle

    def _measure(
        self, transfers: Sequence[Transfer], outcomes: Sequence[FetchOutcome], seconds: float
    ) -> None:
        """Note how long a call took. Entries that are neither hits nor misses may have moved bytes, too."""
        pairs = zip(transfers, outcomes, strict=True)
        num_bytes = sum(each.name.num_bytes for each, outcome in pairs if outcome is FetchOutcome.HIT)
        if num_bytes:
            self._counts.add("fetch_us", round(1e6 * seconds))
            if all(outcome in (FetchOutcome.HIT, FetchOutcome.MISS) for outcome in outcomes):
                self._rule.note_fetch(num_bytes, seconds)

    def pass_on(self, wanted: list[Wanted]) -> None:
        """Ask the next tier."""
        left = [each for each in wanted if each not in self._passed and not each.is_done]
        self._passed.update(left)
        finish_all([each for each in left if each.is_void])
        left = [each for each in left if not each.is_void]
        if left:
            send(left, self._job.weights, self._job.route, self._job.timeout_s)

    def end(self) -> None:
        """Finish the entries that an unexpected error has left; close and open a tier that is not safe."""
        finish_all([each for each in self._job.wanted if not each.is_done and each not in self._passed])
        if self._must_recycle:
            self._must_recycle = False
            self._engine.recycle()

    def _insert(self, wanted: Wanted, reservation: Reservation) -> None:
        self._counts.add("hits")
        self._counts.add("fetched_bytes", self._names[wanted].num_bytes)
        try:
            self._books.insert(wanted, reservation)
        finally:
            wanted.finish()

    def _hold(self, wanted: Wanted, reservation: Reservation) -> None:
        self._must_recycle = True
        self._engine.hold(reservation.cancel, self._names[wanted].num_bytes)

    def _fail(self, call: str, error: object) -> None:
        self.has_failed = True
        self._engine.fail(call, error, self._job.is_probe)

    def _name(self, wanted: Wanted) -> EntryName:
        key, num_rows, row_width, tenant = wanted.name
        weights = self._engine.weights_of(self._job.weights)
        return EntryName(tenant, weights, key, num_rows, self._books.row_bytes(row_width))
