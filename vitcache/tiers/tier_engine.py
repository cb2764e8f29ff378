"""`TierEngine`: one tier as its worker uses it: open, failed, or closed until it can do no harm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from operator import index

import numpy as np

from vitcache.tiers.breaker import Breaker
from vitcache.tiers.names import generation_digest
from vitcache.tiers.protocol import Tier
from vitcache.tiers.tier_counts import TierCounts
from vitcache.tiers.tier_jobs import EraseJob, RevokeJob
from vitcache.tiers.weights_name import Weights

logger = logging.getLogger("vitcache.tiers")

# Most erases that a tier owes. Beyond it, the oldest is dropped with an error in the log.
MOST_OWED = 10_000

# Memory that an engine may still write, because its `close` failed. Never freed.
_kept_for_ever: list[Callable[[], object]] = []


class TierEngine:
    """A tier with its failures. Only the thread of its worker calls it; other threads read `is_open`.

    Attributes
    ----------
    tier
        The tier. A call that raises must be reported with `fail`.
    is_open
        Whether `open` was called, and `close` was not.
    """

    def __init__(self, tier: Tier, breaker: Breaker, counts: TierCounts) -> None:
        self.tier = tier
        self.is_open = False
        self._breaker = breaker
        self._counts = counts
        self._has_logged = False
        self._num_registered = 0  # since `open`
        self._held: list[tuple[Callable[[], object], int]] = []
        self._owed: list[EraseJob | RevokeJob] = []
        self._resolved: tuple[Weights, bytes] | None = None

    def is_ready(self, is_probe: bool = False) -> bool:
        """Open the tier if it is not open, and do the erases that it owes. False: it failed.

        While the breaker is open, only a probe, or a call after the back-off, opens the tier again.
        """
        if not (is_probe or self._breaker.is_ripe):
            return self.is_open and not self._owed
        if not self.is_open:
            try:
                self._open()
            except BaseException as error:
                self.fail("open", error, is_probe)
                return False
        while self._owed:
            job = self._owed.pop(0)
            try:
                self._erase(job)
            except BaseException as error:
                self._owed.insert(0, job)
                self.fail("erase" if isinstance(job, EraseJob) else "revoke", error, is_probe)
                return False
        return True

    def fail(self, call: str, error: object, is_probe: bool = False) -> None:
        """Count a failed call, open the breaker, and log the first failure since the last success."""
        self._counts.add("failures")
        self._breaker.fail(is_probe)
        if not self._has_logged:
            self._has_logged = True
            logger.error(
                "tier %r failed in %s, and is not used until a later try succeeds: %s",
                self.tier.name,
                call,
                error,
                exc_info=error if isinstance(error, BaseException) else None,
            )

    def succeed(self) -> None:
        """Let the next failure be logged."""
        self._has_logged = False

    def weights_of(self, weights: Weights) -> bytes:
        """Return `EntryName.weights` of this tier. Raises as `Tier.generation`.

        The tier is asked once for each `Weights`. If another process revokes the name later, it uses other
        weights under that name, and rows of these must not enter its generation.
        """
        if self._resolved is None or self._resolved[0] is not weights:
            generation = index(self.tier.generation(weights.digest)) if weights.is_named else 0
            self._resolved = (weights, generation_digest(weights.digest, generation))
        return self._resolved[1]

    def resolve(self, weights: Weights) -> None:
        """Ask the tier for the generation of these weights, before another process begins the next one."""
        try:
            self.weights_of(weights)
        except BaseException as error:
            self.fail("generation", error)

    def register(self, memory: Sequence[np.ndarray]) -> None:
        """Register with the tier the memory that it has not got since `open`. Raises as `Tier.register`.

        `memory` only ever grows: the first arrays are those of earlier calls.
        """
        for each in memory[self._num_registered :]:
            self.tier.register(each)
            self._num_registered += 1

    def erase(self, job: EraseJob | RevokeJob) -> None:
        """Erase or revoke, and finish the job. If the tier fails, it owes the job: `is_ready` tries it again.

        Until then nothing is fetched from the tier or stored.
        """
        try:
            if not self.is_ready():
                raise RuntimeError(f"tier {self.tier.name!r} is not in use after a failure")
            try:
                self._erase(job)
            except BaseException as error:
                self.fail("erase" if isinstance(job, EraseJob) else "revoke", error)
                raise
        except BaseException as error:
            job.error = error
            self._owed.append(job)
            if len(self._owed) > MOST_OWED:
                del self._owed[0]
                logger.error("tier %r owes more than %d erases; one is lost", self.tier.name, MOST_OWED)
        finally:
            job.finish()

    def _erase(self, job: EraseJob | RevokeJob) -> None:
        if isinstance(job, RevokeJob):
            self.tier.revoke(job.weights.digest)
            if self._resolved is not None and self._resolved[0] is not job.weights:
                self._resolved = None  # of later weights, which were asked for before this revoke
        else:
            job.num_erased = index(self.tier.erase(tenant=job.tenant, key=job.key))
            self._counts.add("erased", job.num_erased)

    def settle(self) -> None:
        """Try the erases that the tier owes, before it is closed for good, and log those that are lost."""
        if self._owed and not self.is_ready(is_probe=True):
            logger.error(
                "tier %r is closed, and %d erases or changes of weights failed: rows of before may be found "
                "when it is opened again",
                self.tier.name,
                len(self._owed),
            )

    def hold(self, release: Callable[[], object], num_bytes: int) -> None:
        """Keep memory that the engine may still use, until `recycle` has closed the engine."""
        self._held.append((release, num_bytes))
        self._counts.add("quarantined_bytes", num_bytes)

    def recycle(self) -> None:
        """Close the tier, free the memory that it was using, and open it again.

        If `close` raises, the memory is never freed. If `close` hangs, this thread hangs with it, and holds
        the memory.
        """
        if self.close():
            for release, num_bytes in self._held:
                try:
                    release()
                except BaseException:
                    logger.exception("tier %r: rows could not be released", self.tier.name)
                self._counts.add("quarantined_bytes", -num_bytes)
        else:
            _kept_for_ever.extend(release for release, _ in self._held)
        self._held.clear()
        try:
            self._open()
        except BaseException as error:
            self.fail("open", error)

    def _open(self) -> None:
        self.tier.open()
        self.is_open = True
        self._num_registered = 0

    def close(self) -> bool:
        """Close the tier if it is open. False: `close` raised."""
        if not self.is_open:
            return True
        self.is_open = False
        try:
            self.tier.close()
        except BaseException as error:
            self.fail("close", error)
            return False
        return True

    def read_metrics(self) -> None:
        """Copy the tier's own counts, for threads that must not call it."""
        if self.is_open:
            try:
                self._counts.own = _checked(self.tier.metrics())
            except BaseException as error:
                self.fail("metrics", error)


def _checked(counts: Mapping[str, int]) -> dict[str, int]:
    """Return a copy of a tier's own counts. Raises TypeError if they cannot be shown as metrics."""
    for name in counts:
        if not isinstance(name, str):
            raise TypeError(f"the name of a count is {name!r}, it must be a str")
    return {name: index(count) for name, count in counts.items()}
