"""`Offers`: hands the entries that are worth a copy to the workers of the tiers."""

from __future__ import annotations

from collections.abc import Sequence

from vitcache._native import Ledger
from vitcache.tiers.tier_jobs import StoreJob
from vitcache.tiers.tier_runner import TierRunner
from vitcache.tiers.weights_name import CurrentWeights


class Offers:
    """Takes offers from the ledger. `CacheCoordinator.drain` calls it, on any thread; it never waits.

    It refers to no object that refers to the coordinator.
    """

    def __init__(self, runners: Sequence[TierRunner], current: CurrentWeights) -> None:
        self._runners = runners
        self._current = current

    def take(self, ledger: Ledger) -> None:
        """Queue a store of each offered entry in each tier; if none accepts it, let a later hit offer it."""
        # The weights are read first: if the epoch changes now, the worker skips the stores of earlier ones.
        weights = self._current.weights
        offers = ledger.take_offers()
        if not offers:
            return
        left = {offer[0] for offer in offers}
        try:
            jobs = [StoreJob(*offer, weights) for offer in offers if offer[-1]]
            if jobs and weights.epoch == ledger.epoch:
                for runner in self._runners:
                    refused = {job.key for job in runner.offer(jobs)}
                    left.intersection_update(refused)
        finally:
            for key in left:
                ledger.retract_offer(key)
