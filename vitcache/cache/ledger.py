"""The books of the cache: which entry has which pages, what makes room for what, and what has been counted.

Nothing here takes a lock, copies a row, makes a CUDA call or logs: the cache calls it with its lock held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict

from vitcache.cache.index import Index
from vitcache.cache.stats import CacheStats, Counts, HitCounts, TierHits
from vitcache.device.streams import Fence
from vitcache.pages.entry import Entry
from vitcache.pages.pending import Demotion, PendingCopies, PendingWrite
from vitcache.pages.pool import PagePool


class Ledger:
    """The entries of all epochs, the pages of both tiers, and the counts. Guarded by the cache's lock."""

    def __init__(self, policy: str, device: PagePool, host: PagePool | None = None) -> None:
        self.device = device
        self.host = host
        self._pools = [device] if host is None else [device, host]
        self._policy = policy
        self.epoch = 0
        self.index = self._new_index()
        self.counts = Counts()
        self._stale: list[Index] = []  # of earlier epochs
        self._dropped: set[Entry] = set()  # in no index, but leased
        self._hits = {pool.tier: HitCounts() for pool in self._pools}
        self._pending: set[PendingWrite | PendingCopies] = set()
        # What is between the tiers, until something else is put under its key.
        self._moving: dict[bytes, Demotion] = {}
        self._num_leases = 0

    def pin(self, key: bytes, num_rows: int | None) -> Entry | None:
        """Look up and lease an entry; one of another length than expected is dropped."""
        index = self.index
        entry = index.device.get(key) or index.host.get(key)
        if entry is not None and num_rows is not None and entry.num_rows != num_rows:
            self._drop(key)
            entry = None
        if entry is None:
            self.counts.misses += 1
            return None
        entry.hits += 1
        pool = entry.pool
        index.policies[pool.tier].touch(entry.key)
        hits = self._hits[pool.tier]
        hits.hits += 1
        hits.rows += entry.num_rows
        hits.saved_ms += entry.cost
        if entry.leases == 0:
            pool.leased += entry.num_pages
        entry.leases += 1
        self._num_leases += 1
        return entry

    def report_corrupt(self, entry: Entry) -> None:
        """Make a miss of a look-up that found rows which are no longer those that were put, and drop them."""
        hits = self._hits[entry.pool.tier]
        hits.hits -= 1
        hits.rows -= entry.num_rows
        hits.saved_ms -= entry.cost
        self.counts.misses += 1
        self.counts.corruptions += 1
        # Of a copy that backs a device entry: that may have been made from it.
        if entry in (self.index.host.get(entry.key), self.index.host_copies.get(entry.key)):
            self._drop(entry.key)

    def unpin(self, entry: Entry) -> None:
        """Take back a lease."""
        self._num_leases -= 1
        entry.leases -= 1
        if entry.leases == 0:
            entry.pool.leased -= entry.num_pages
            if entry in self._dropped:
                self._dropped.remove(entry)
                self._free(entry)

    def begin(self, key: bytes, num_rows: int, cost: float, epoch: int) -> PendingWrite | None:
        """Set pages aside for an entry and what makes room; None if too few can be had or `epoch` is over."""
        count = self.device.pages_for(num_rows)
        if epoch != self.epoch or count > self.device.num_available:
            self.counts.rejections += 1
            return None
        self._reclaim(self.device, count)
        old = self.index.device.get(key)
        if old is not None and old.leases == 0 and self.device.num_free < count:
            self._drop(key)
        return self._take_pages(key, num_rows, cost, None)

    def begin_promotion(self, source: Entry) -> PendingWrite | None:
        """Set device pages aside for an entry that only the host tier has; None if it is no such entry any
        more, or too few can be had.
        """
        is_there = self.index.host.get(source.key) is source
        if not is_there or len(source.pages) > self.device.num_available:
            return None
        return self._take_pages(source.key, source.num_rows, source.cost, source)

    def begin_early_copies(self, num_rows: Iterable[int]) -> PendingCopies | None:
        """Set host pages aside for copies of what would make room for items of so many rows, if anything."""
        if self.host is None:
            return None
        count = min(sum(map(self.device.pages_for, num_rows)), self.device.num_available)
        victims = self._victims(self.device, count)
        # What is copied already must not make room for the others.
        host_copies = self.index.host_copies
        copied = {victim.key: host_copies.pop(victim.key) for victim in victims if victim.key in host_copies}
        held = sum(copy.num_pages for copy in copied.values() if copy.leases == 0)
        self.host.in_flight += held
        fences: set[Fence] = set()
        demotions = []
        # The first to go first: what the others need later, these have given up by then.
        for victim in reversed(victims):
            if victim.key not in copied and self.index.is_kept(victim):
                demotion = self._demote(victim, fences)
                if demotion is not None:
                    fences.add(victim.written)
                    demotions.append(demotion)
        self.host.in_flight -= held
        host_copies |= copied
        if not demotions:
            return None
        copies = PendingCopies(demotions, fences)
        self._pending.add(copies)
        return copies

    def finish(self, pending: PendingWrite, fence: Fence | None, *, failed: bool = False) -> bool:
        """Enter what was written before `fence`, or free its pages if that failed or the epoch is over.

        A failed one may have no fence. If it was finished before the failure, nothing happens.
        """
        if not self._end(pending):
            return False
        source, copies = pending.source, pending.copies
        if fence is None or failed or pending.epoch != self.epoch:
            # Nobody may have waited for them.
            fences = tuple(copies.fences) if fence is None else (*copies.fences, fence)
            for demotion in reversed(copies.demotions):
                self._end_move(demotion)
                demotion.pool.give_back(demotion.pages, fences)
                self.counts.evictions += 1
            pending.pool.give_back(pending.leftover_pages, fences)
            pending.pool.give_back(pending.pages, fences)
            self.counts.rejections += not failed and source is None
            return False
        before = tuple(copies.fences)
        for demotion in reversed(copies.demotions):
            if self._end_move(demotion):
                self.index.add(demotion.host_entry(copies.copied or fence))
                self.counts.demotions += 1
                self.counts.writebacks += 1
            else:
                demotion.pool.give_back(demotion.pages, before)
                self.counts.evictions += 1
        pending.pool.give_back(pending.leftover_pages, before)
        if source is not None and self.index.host.get(source.key) is not source:
            pending.pool.give_back(pending.pages, (fence,))
            return False
        entry = Entry(pending.key, pending.num_rows, pending.cost, pending.pool, pending.pages, fence)
        if source is not None:
            self.index.promote(entry)
            self.counts.promotions += 1
            return True
        self._moving.pop(pending.key, None)
        if pending.key in self.index:
            self._drop(pending.key)
        self.index.add(entry)
        self.counts.insertions += 1
        return True

    def finish_early_copies(
        self, copies: PendingCopies, fence: Fence | None, *, failed: bool = False
    ) -> None:
        """Let the copies made before `fence` back their entries, or free their pages if they failed or the
        entry has gone. Else as `finish`.
        """
        if not self._end(copies):
            return
        for demotion in copies.demotions:
            entry = demotion.entry
            is_there = self.index.device.get(entry.key) is entry
            if is_there and fence is not None:  # else the pages may be another's, and what was read is void
                copies.replaced.append(entry.reads.get(fence.stream))
                entry.reads[fence.stream] = fence
            if is_there and fence is not None and not failed and entry.key not in self.index.host_copies:
                self.index.host_copies[entry.key] = demotion.host_entry(fence)
                self.counts.writebacks += 1
            else:
                fences = copies.fences if fence is None else {*copies.fences, fence}
                demotion.pool.give_back(demotion.pages, tuple(fences))

    def advance(self) -> None:
        """Begin an epoch in constant time: the pages of earlier ones are freed only when they are needed."""
        if len(self.index):
            self.counts.evictions += len(self.index)
            self._stale.append(self.index)
            self.index = self._new_index()
        self._moving.clear()
        self.epoch += 1

    def clear(self) -> None:
        """Begin an epoch, and free the pages of earlier ones."""
        self.advance()
        while self._stale:
            self._reclaim_one()

    def stats(self) -> CacheStats:
        """Return all counts and sizes."""
        used = [(pool.num_pages - pool.num_free) * pool.page_bytes for pool in self._pools]
        capacity = [pool.num_pages * pool.page_bytes for pool in self._pools]
        return CacheStats(
            hits=sum(hits.hits for hits in self._hits.values()),
            **asdict(self.counts),
            entries=len(self.index),
            leased_pages=sum(pool.leased for pool in self._pools),
            device_bytes=used[0],
            host_bytes=sum(used[1:]),
            device_capacity_bytes=capacity[0],
            host_capacity_bytes=sum(capacity[1:]),
            device=self._tier_hits("device"),
            host=self._tier_hits("host"),
        )

    def _tier_hits(self, tier: str) -> TierHits:
        row_bytes = self.device.page_bytes // self.device.page_rows
        return self._hits.get(tier, HitCounts()).tier_hits(row_bytes)

    def violations(self) -> list[str]:
        """Return in words what does not agree, which is nothing."""
        indices = [self.index, *self._stale]
        entries = [*(entry for index in indices for entry in index), *self._dropped]
        found = []
        for pool in self._pools:
            here = [entry for entry in entries if entry.pool is pool]
            in_flight = [page for pending in self._pending for page in pending.pages_of(pool)]
            owned = Counter([*pool.free_pages, *in_flight, *(page for entry in here for page in entry.pages)])
            wrong = [page for page in range(pool.num_pages) if owned.pop(page, 0) != 1] + sorted(owned)
            found += [f"{pool.tier} pages {wrong} do not have one owner each"] if wrong else []
            leased = sum(len(entry.pages) for entry in here if entry.leases)
            found += _differ(f"leased {pool.tier} pages", leased, pool.leased)
            found += _differ(f"{pool.tier} pages in flight", len(in_flight), pool.in_flight)
            for index in indices:
                filed = index.device if pool is self.device else index.host
                order = sorted(index.order(pool.tier))
                found += _differ(f"keys of the {pool.tier} tier's policy", sorted(filed), order)
            for entry in here:
                found += _differ("pages of an entry", pool.pages_for(entry.num_rows), len(entry.pages))
        found += _differ("leases", sum(entry.leases for entry in entries), self._num_leases)
        leased = sum(entry.leases > 0 for entry in self._dropped)
        found += _differ("dropped entries", leased, len(self._dropped))
        for index in indices:
            found += _differ("keys in both tiers", [], sorted(index.device.keys() & index.host.keys()))
            found += _differ("backing of nothing", [], sorted(index.host_copies.keys() - index.device.keys()))
        writes = [pending for pending in self._pending if isinstance(pending, PendingWrite)]
        moving = [demotion for write in writes for demotion in write.copies.demotions]
        found += _differ("moves in no flight", 0, len(set(self._moving.values()) - set(moving)))
        present = len(self.index) + len(moving)
        found += _differ("entries", present, self.counts.insertions - self.counts.evictions)
        return found

    def _take_pages(self, key: bytes, num_rows: int, cost: float, source: Entry | None) -> PendingWrite:
        """Take device pages for so many rows, which can be had."""
        count = self.device.pages_for(num_rows)
        victims = self._victims(self.device, count)
        free, fences = self.device.take(min(count, self.device.num_free))
        bare = []  # what is worth a copy and has none
        for victim in reversed(victims):
            is_kept = self.index.evict(victim)
            fences.update(victim.fences())
            if self.index.restore_host_copy(victim.key):
                self.counts.demotions += 1
            elif is_kept:
                bare.append(victim)
            else:
                self.counts.evictions += 1
        demotions = []
        for victim in reversed(bare):
            demotion = self._demote(victim, fences)
            if demotion is None:
                self.counts.evictions += 1
            else:
                demotions.append(demotion)
                self._moving[victim.key] = demotion
        # In ascending order, so that adjacent pages are read and written in one piece.
        pages = tuple(sorted([*free, *(page for victim in victims for page in victim.pages)]))
        self.device.in_flight += len(pages)
        pending = PendingWrite(
            self.epoch,
            key,
            num_rows,
            cost,
            self.device,
            pages[:count],
            pages[count:],
            PendingCopies(demotions, fences),
            source,
        )
        self._pending.add(pending)
        return pending

    def _end(self, pending: PendingWrite | PendingCopies) -> bool:
        """Take what is pending out of the books; whether it was there."""
        if pending not in self._pending:
            return False
        self._pending.remove(pending)
        for pool in self._pools:
            pool.in_flight -= len(pending.pages_of(pool))
        return True

    def _end_move(self, demotion: Demotion) -> bool:
        """End a move; whether nobody has put rows under the key meanwhile, even if those have gone."""
        if self._moving.get(demotion.entry.key) is not demotion:
            return False
        del self._moving[demotion.entry.key]
        return True

    def _victims(self, pool: PagePool, count: int) -> list[Entry]:
        """Choose who must go for `count` pages to be free, which can be had. The last to go comes first."""
        self._reclaim(pool, count)
        short = count - pool.num_free
        chosen: list[Entry] = []
        for entry in self.index.victims(pool.tier):
            if short <= 0:
                break
            if entry.leases == 0:
                chosen.append(entry)
                short -= len(entry.pages)
        # A large one may have made smaller ones before it unnecessary.
        needed = []
        for entry in reversed(chosen):
            if short + len(entry.pages) <= 0:
                short += len(entry.pages)
            else:
                needed.append(entry)
        return needed

    def _demote(self, entry: Entry, fences: set[Fence]) -> Demotion | None:
        """Set host pages aside for an entry, and add their fences; None if there cannot be enough."""
        if self.host is None or len(entry.pages) > self.host.num_available:
            return None
        for victim in self._victims(self.host, len(entry.pages)):
            is_host_copy = victim.key in self.index.host_copies
            self.index.evict(victim)
            self.counts.evictions += not is_host_copy
            self._free(victim)
        pages, host_fences = self.host.take(len(entry.pages))
        self.host.in_flight += len(pages)
        fences |= host_fences
        return Demotion(entry, self.host, pages)

    def _reclaim(self, pool: PagePool, count: int) -> None:
        """Free entries of earlier epochs until `count` pages are free, or there is none left."""
        while self._stale and pool.num_free < count:
            self._reclaim_one()

    def _reclaim_one(self) -> None:
        if len(self._stale[-1]):
            for entry in self._stale[-1].pop():
                self._free(entry)
        else:
            self._stale.pop()

    def _drop(self, key: bytes) -> None:
        """Take what is under a key out of the cache."""
        self.counts.evictions += 1
        for entry in self.index.remove(key):
            self._free(entry)

    def _free(self, entry: Entry) -> None:
        """Free the pages of an entry that is in no index any more, or let its last lease do so."""
        if entry.leases:
            self._dropped.add(entry)
        else:
            entry.pool.give_back(entry.pages, entry.fences())

    def _new_index(self) -> Index:
        return Index(self._policy, self._pools)


def _differ(name: str, counted: object, booked: object) -> list[str]:
    return [] if counted == booked else [f"{name}: counted {counted}, booked {booked}"]
