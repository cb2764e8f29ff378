"""Policies that are written in Python: called between two steps of the ledger, never within one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vitcache._native import Ledger, Turn
from vitcache.cache.policies import Policy

NO_EPOCH = -1


class PythonPolicies:
    """One Python policy per tier of a cache. Any thread may call `update`.

    The native ledger records the events of each key. `update` passes these events to the policies, in
    order, and gives the ledger the order of eviction that they answer. So a policy may run any Python code,
    but it must not call its cache. Keys that are inserted or hit after an `update` are evicted as the policy
    ordered them before. An update takes time in proportion to the number of entries.

    If a policy raises, or is interrupted, the next update makes new policies, and inserts all entries.

    Parameters
    ----------
    make_policy
        Returns a new policy for a tier of a number of pages.
    capacities
        Number of pages of each tier, by the tier's name.
    """

    def __init__(self, make_policy: Callable[[int], Policy], capacities: dict[str, int]) -> None:
        self._make_policy = make_policy
        self._capacities = capacities
        self._turn = Turn("its policy; a policy must not call its cache")
        self._epoch = NO_EPOCH
        self._policies: dict[str, Policy] = {}

    def update(self, ledger: Ledger) -> None:
        """Pass the events since the last call to the policies, and their order of eviction to the ledger.

        Raises
        ------
        RuntimeError
            If a policy calls its cache, or a signal handler does while a policy runs.
        """
        with self._turn.of("a call of EmbeddingCache"):
            known, self._epoch = self._epoch, NO_EPOCH  # until all events are replayed
            epoch, events = ledger.take_policy_events(known)
            if known != epoch:  # the entries of earlier epochs are in no policy
                self._policies = {
                    tier: self._make_policy(capacity) for tier, capacity in self._capacities.items()
                }
            for tier, policy in self._policies.items():
                if events[tier]:
                    _replay(policy, events[tier])
                    order = [(key, policy.is_worth_copy(key)) for key in policy.victims()]
                    ledger.set_policy_order(epoch, tier, order)
            self._epoch = epoch


def _replay(policy: Policy, events: Iterable[tuple[str, bytes, int, float, int]]) -> None:
    for name, key, pages, cost, hits in events:
        if name == "insert":
            policy.insert(key, pages, cost)
        elif name == "touch":
            for _ in range(hits):
                policy.touch(key)
        else:
            getattr(policy, name)(key)
