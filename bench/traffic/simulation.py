"""Simulates a cache on a trace: the cache's own policies and its page accounting, without rows.

Each access is complete before the next begins, so no entry is leased while another is inserted.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitcache.bench.traffic.traces import Access
from vitcache.cache.policies import make_policy

PAGE_ROWS = 16  # the default of `EmbeddingCache`


@dataclass
class Outcome:
    """Counts of one simulation.

    `encode_ms` is the time that all encodes take without a cache, `saved_ms` the part that hits save.
    `written_pages` are the pages that were copied to the host tier.
    """

    accesses: int = 0
    hits: float = 0
    encode_ms: float = 0
    saved_ms: float = 0
    inserted_pages: int = 0
    written_pages: int = 0

    @property
    def hit_share(self) -> float:
        """Hits divided by accesses."""
        return self.hits / self.accesses if self.accesses else 0.0

    @property
    def saved_share(self) -> float:
        """Saved encode time divided by the encode time without a cache."""
        return self.saved_ms / self.encode_ms if self.encode_ms else 0.0

    @property
    def written_share(self) -> float:
        """Pages copied to the host tier divided by inserted pages."""
        return self.written_pages / self.inserted_pages if self.inserted_pages else 0.0


class Tier:
    """The entries of one tier: their pages, and the order of their eviction."""

    def __init__(self, policy: str, num_pages: int) -> None:
        self.num_pages = self.num_free = num_pages
        self._policy = make_policy(policy, num_pages)
        self._pages: dict[bytes, int] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._pages

    def touch(self, key: bytes) -> None:
        """Record a hit."""
        self._policy.touch(key)

    def allocate(self, pages: int, *, in_policy_order: bool) -> list[tuple[bytes, int]]:
        """Allocate `pages` pages, at most all of the tier; return the victims to demote and their pages.

        The result begins with the policy's last victim. The calls of the policy's `evict` begin with its
        first victim if `in_policy_order` is true, else with its last victim; policies learn from that order.
        """
        victims = self._victims(pages - self.num_free)
        to_demote = [
            (victim, self._pages[victim]) for victim in victims if self._policy.is_worth_copy(victim)
        ]
        for victim in reversed(victims) if in_policy_order else victims:
            self._policy.evict(victim)
            self.num_free += self._pages.pop(victim)
        self.num_free -= pages
        return to_demote

    def insert(self, key: bytes, pages: int, cost: float) -> None:
        """Insert a key that is not in the tier; its pages were allocated before."""
        self._policy.insert(key, pages, cost)
        self._pages[key] = pages

    def _victims(self, missing_pages: int) -> list[bytes]:
        """Choose victims as the cache's ledger does; the policy's last victim is first in the list."""
        candidates: list[bytes] = []
        if missing_pages > 0:
            for key in self._policy.victims():
                candidates.append(key)
                missing_pages -= self._pages[key]
                if missing_pages <= 0:
                    break
        needed = []
        for key in reversed(candidates):
            if missing_pages + self._pages[key] <= 0:
                missing_pages += self._pages[key]
            else:
                needed.append(key)
        return needed


class TwoTiers:
    """The entries of a cache with a device tier and a host tier."""

    def __init__(
        self, policy: str, device_pages: int, host_pages: int = 0, *, page_rows: int = PAGE_ROWS
    ) -> None:
        self.inserted_pages = self.written_pages = 0
        self._device, self._host = Tier(policy, device_pages), Tier(policy, host_pages)
        self._costs: dict[bytes, float] = {}
        self._page_rows = page_rows

    def access(self, key: bytes, num_rows: int, encode_ms: float) -> bool:
        """Look up an item, and insert it if it is missing; return whether it was a hit."""
        for tier in (self._device, self._host):
            if key in tier:
                tier.touch(key)
                return True
        pages = pages_for(num_rows, self._page_rows)
        if pages <= self._device.num_pages:
            self._insert(key, pages, encode_ms)
        return False

    def _insert(self, key: bytes, pages: int, encode_ms: float) -> None:
        """Insert an item. Victims of the device tier are demoted as the policy says."""
        self._costs[key] = encode_ms
        self.inserted_pages += pages
        demoted: list[tuple[bytes, int]] = []
        available = self._host.num_pages
        # The order of eviction in each tier is that of the cache's ledger.
        for victim, size in self._device.allocate(pages, in_policy_order=True):
            if size <= available:  # the pages of earlier demotions of this access are pending
                self._host.allocate(size, in_policy_order=False)
                available -= size
                demoted.append((victim, size))
                self.written_pages += size
        for victim, size in reversed(demoted):
            self._host.insert(victim, size, self._costs[victim])
        self._device.insert(key, pages, encode_ms)


def simulate(
    trace: Sequence[Access],
    policy: str,
    device_pages: int,
    host_pages: int = 0,
    *,
    page_rows: int = PAGE_ROWS,
) -> Outcome:
    """Replay a trace. If there is a host tier, victims of the device tier are demoted as the policy says."""
    tiers = TwoTiers(policy, device_pages, host_pages, page_rows=page_rows)
    outcome = Outcome()
    for key, num_rows, encode_ms in trace:
        outcome.accesses += 1
        outcome.encode_ms += encode_ms
        if tiers.access(key, num_rows, encode_ms):
            outcome.hits += 1
            outcome.saved_ms += encode_ms
    outcome.inserted_pages, outcome.written_pages = tiers.inserted_pages, tiers.written_pages
    return outcome


def simulate_farthest(trace: Sequence[Access], num_pages: int, *, page_rows: int = PAGE_ROWS) -> Outcome:
    """Replay a trace on one tier with knowledge of the future.

    Belady's rule (1966): evict the entry whose next use is farthest away. An item whose own next use is
    farther away is not inserted. If all items have one size, no cache has more hits. If sizes differ, the
    result is good but not always the best.
    """
    next_use = _next_uses(trace)
    outcome, cached, free = Outcome(), {}, num_pages  # next use by cached key
    farthest: list[tuple[float, bytes, int]] = []  # negative next use, key, pages
    for now, (key, num_rows, encode_ms) in enumerate(trace):
        outcome.accesses += 1
        outcome.encode_ms += encode_ms
        pages = pages_for(num_rows, page_rows)
        if key in cached:
            outcome.hits += 1
            outcome.saved_ms += encode_ms
            cached[key] = next_use[now]
            heapq.heappush(farthest, (-next_use[now], key, pages))
            continue
        victims = []
        while free < pages and farthest and -farthest[0][0] > next_use[now]:
            victim = heapq.heappop(farthest)
            if (
                cached.get(victim[1]) == -victim[0]
            ):  # else the heap's item is outdated: the key was used since then
                victims.append(victim)
                free += victim[2]
                del cached[victim[1]]
        if next_use[now] < math.inf and free >= pages:
            cached[key] = next_use[now]
            free -= pages
            outcome.inserted_pages += pages
            heapq.heappush(farthest, (-next_use[now], key, pages))
            continue
        for victim in victims:  # their pages were too few: undo their eviction
            cached[victim[1]] = -victim[0]
            free -= victim[2]
            heapq.heappush(farthest, victim)
    return outcome


def bound(trace: Sequence[Access], num_pages: int, *, page_rows: int = PAGE_ROWS) -> Outcome:
    """Return a number of hits and of saved milliseconds that no cache of one tier can exceed.

    A hit occupies the item's pages from one access to the next: pages times accesses. The bound on hits takes
    the hits that occupy least, until their sum is the cache's pages times the trace's accesses. So the cache
    is full on average, but may be overfull at some moments. The bound on milliseconds does the same with
    pages times accesses per millisecond. The two bounds are independent.

    Source: PFOO-L of Berger, Beckmann and Harchol-Balter, "Practical bounds on optimal caching with variable
    object sizes", 2018.
    """
    outcome = Outcome(len(trace), 0, sum(access.encode_ms for access in trace))
    next_use = _next_uses(trace)
    hits = [
        ((next_use[now] - now) * pages, access.encode_ms)
        for now, access in enumerate(trace)
        if (pages := pages_for(access.num_rows, page_rows)) <= num_pages and next_use[now] < math.inf
    ]
    capacity = num_pages * len(trace)
    outcome.hits = _fill(capacity, sorted((size, 1.0) for size, _ in hits))
    outcome.saved_ms = _fill(capacity, sorted(hits, key=lambda hit: hit[0] / hit[1] if hit[1] else math.inf))
    return outcome


def pages_for(num_rows: int, page_rows: int) -> int:
    """Return the number of pages of an entry with `num_rows` rows; at least 1."""
    return max(1, -(-num_rows // page_rows))


def footprint(trace: Sequence[Access], page_rows: int = PAGE_ROWS) -> int:
    """Return the number of pages that all different items of a trace occupy together."""
    return sum(pages_for(num_rows, page_rows) for num_rows in {key: rows for key, rows, _ in trace}.values())


def _next_uses(trace: Sequence[Access]) -> list[float]:
    """Return for each access the index of the next access to the same key, or infinity."""
    later: dict[bytes, int] = {}
    next_use = [math.inf] * len(trace)
    for now in range(len(trace) - 1, -1, -1):
        next_use[now] = later.get(trace[now].key, math.inf)
        later[trace[now].key] = now
    return next_use


def _fill(capacity: float, hits: list[tuple[float, float]]) -> float:
    """Sum the values of (size, value) hits in the given order until `capacity` is full; the last in part."""
    total = 0.0
    for size, value in hits:
        if size > capacity:
            return total + value * capacity / size
        capacity -= size
        total += value
    return total
