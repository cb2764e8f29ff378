"""What a cache would have done with a trace: the real policies and the cache's page accounting, without rows.

Nothing is leased while room is made, and each access is over before the next begins.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitcache.bench.traffic.traces import Access
from vitcache.cache.policies import make_policy

PAGE_ROWS = 64


@dataclass
class Outcome:
    """Accesses and hits, milliseconds of encoding in all and saved, pages inserted and written back."""

    accesses: int = 0
    hits: float = 0
    encode_ms: float = 0
    saved_ms: float = 0
    inserted_pages: int = 0
    written_pages: int = 0

    @property
    def hit_share(self) -> float:
        """Of the accesses."""
        return self.hits / self.accesses if self.accesses else 0.0

    @property
    def saved_share(self) -> float:
        """Of the time that encoding takes without a cache."""
        return self.saved_ms / self.encode_ms if self.encode_ms else 0.0

    @property
    def written_share(self) -> float:
        """Of the inserted pages."""
        return self.written_pages / self.inserted_pages if self.inserted_pages else 0.0


class Tier:
    """The entries of one tier, by the order of a policy."""

    def __init__(self, policy: str, num_pages: int) -> None:
        self.num_pages = self.num_free = num_pages
        self._policy = make_policy(policy, num_pages)
        self._pages: dict[bytes, int] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._pages

    def touch(self, key: bytes) -> None:
        """Note a hit."""
        self._policy.touch(key)

    def take(self, pages: int, *, in_order: bool) -> list[tuple[bytes, int]]:
        """Take pages, which can be had; return what went for them and is worth keeping, with its pages.

        The last to go comes first. `in_order`: a policy, which learns from it, sees the first one go first.
        """
        victims = self._victims(pages - self.num_free)
        kept = [(victim, self._pages[victim]) for victim in victims if self._policy.is_worth_copy(victim)]
        for victim in reversed(victims) if in_order else victims:
            self._policy.evict(victim)
            self.num_free += self._pages.pop(victim)
        self.num_free -= pages
        return kept

    def enter(self, key: bytes, pages: int, cost: float) -> None:
        """Add a key that is not there, with pages that were taken."""
        self._policy.insert(key, pages, cost)
        self._pages[key] = pages

    def _victims(self, short: int) -> list[bytes]:
        """Choose as the cache's ledger does, the last to go first."""
        chosen: list[bytes] = []
        if short > 0:
            for key in self._policy.victims():
                chosen.append(key)
                short -= self._pages[key]
                if short <= 0:
                    break
        needed = []
        for key in reversed(chosen):
            if short + self._pages[key] <= 0:
                short += self._pages[key]
            else:
                needed.append(key)
        return needed


def simulate(
    trace: Sequence[Access],
    policy: str,
    device_pages: int,
    host_pages: int = 0,
    *,
    page_rows: int = PAGE_ROWS,
) -> Outcome:
    """Replay a trace. What the device tier gives up and is worth it goes to the host tier, if any."""
    device, host = Tier(policy, device_pages), Tier(policy, host_pages)
    costs: dict[bytes, float] = {}
    outcome = Outcome()
    for key, num_rows, encode_ms in trace:
        outcome.accesses += 1
        outcome.encode_ms += encode_ms
        tier = next((tier for tier in (device, host) if key in tier), None)
        if tier is not None:
            tier.touch(key)
            outcome.hits += 1
            outcome.saved_ms += encode_ms
            continue
        pages = pages_for(num_rows, page_rows)
        if pages > device_pages:
            continue
        costs[key] = encode_ms
        outcome.inserted_pages += pages
        demoted: list[tuple[bytes, int]] = []
        room = host_pages
        for victim, size in device.take(pages, in_order=True):  # in each tier as the cache's ledger does
            if size <= room:  # what is on its way there already cannot go
                host.take(size, in_order=False)
                room -= size
                demoted.append((victim, size))
                outcome.written_pages += size
        for victim, size in reversed(demoted):
            host.enter(victim, size, costs[victim])
        device.enter(key, pages, encode_ms)
    return outcome


def simulate_farthest(trace: Sequence[Access], num_pages: int, *, page_rows: int = PAGE_ROWS) -> Outcome:
    """Replay a trace with knowledge of the future: what is used again last goes first, or is not let in.

    Belady's rule (1966): the most hits there can be if all items are of one size, and a good answer, not the
    best, if they are not. One tier.
    """
    next_use = _next_uses(trace)
    outcome, here, free = Outcome(), {}, num_pages
    farthest: list[tuple[float, bytes, int]] = []  # negative next use, key, pages
    for now, (key, num_rows, encode_ms) in enumerate(trace):
        outcome.accesses += 1
        outcome.encode_ms += encode_ms
        pages = pages_for(num_rows, page_rows)
        if key in here:
            outcome.hits += 1
            outcome.saved_ms += encode_ms
            here[key] = next_use[now]
            heapq.heappush(farthest, (-next_use[now], key, pages))
            continue
        victims = []
        while free < pages and farthest and -farthest[0][0] > next_use[now]:
            victim = heapq.heappop(farthest)
            if here.get(victim[1]) == -victim[0]:  # otherwise it was used since
                victims.append(victim)
                free += victim[2]
                del here[victim[1]]
        if next_use[now] < math.inf and free >= pages:
            here[key] = next_use[now]
            free -= pages
            outcome.inserted_pages += pages
            heapq.heappush(farthest, (-next_use[now], key, pages))
            continue
        for victim in victims:  # they would not have made room
            here[victim[1]] = -victim[0]
            free -= victim[2]
            heapq.heappush(farthest, victim)
    return outcome


def bound(trace: Sequence[Access], num_pages: int, *, page_rows: int = PAGE_ROWS) -> Outcome:
    """Return hits and saved milliseconds that no cache of one tier can exceed, each by itself.

    A hit takes the pages of an item from one access to the next. The cheapest hits are taken, by pages
    times accesses, or that per millisecond, until they fill the cache on average over the trace, though not
    at each moment: the upper bound PFOO-L of Berger, Beckmann and Harchol-Balter, "Practical bounds on
    optimal caching with variable object sizes", 2018.
    """
    outcome = Outcome(len(trace), 0, sum(access.encode_ms for access in trace))
    next_use = _next_uses(trace)
    hits = [
        ((next_use[now] - now) * pages, access.encode_ms)
        for now, access in enumerate(trace)
        if (pages := pages_for(access.num_rows, page_rows)) <= num_pages and next_use[now] < math.inf
    ]
    room = num_pages * len(trace)
    outcome.hits = _fill(room, sorted((size, 1.0) for size, _ in hits))
    outcome.saved_ms = _fill(room, sorted(hits, key=lambda hit: hit[0] / hit[1] if hit[1] else math.inf))
    return outcome


def pages_for(num_rows: int, page_rows: int) -> int:
    """Return the pages that an entry takes."""
    return max(1, -(-num_rows // page_rows))


def footprint(trace: Sequence[Access], page_rows: int = PAGE_ROWS) -> int:
    """Return the pages that hold all that is in a trace."""
    return sum(pages_for(num_rows, page_rows) for num_rows in {key: rows for key, rows, _ in trace}.values())


def _next_uses(trace: Sequence[Access]) -> list[float]:
    """Return for each access the number of the next one to the same key."""
    later: dict[bytes, int] = {}
    next_use = [math.inf] * len(trace)
    for now in range(len(trace) - 1, -1, -1):
        next_use[now] = later.get(trace[now].key, math.inf)
        later[trace[now].key] = now
    return next_use


def _fill(room: float, hits: list[tuple[float, float]]) -> float:
    """Add up what hits are worth, in the order given, the last one in part."""
    worth = 0.0
    for size, value in hits:
        if size > room:
            return worth + value * room / size
        room -= size
        worth += value
    return worth
