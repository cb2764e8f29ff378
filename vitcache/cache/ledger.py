"""The state of a cache: its entries, the pages that they own, pending writes, and counts.

The ledger chooses victims and records each change. It takes no lock, copies no rows, makes no CUDA call and
logs nothing: `CacheCoordinator` calls it under the cache's lock.
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
        self._dropped: set[Entry] = set()  # leased, and in no index
        self._hits = {pool.tier: HitCounts() for pool in self._pools}
        self._pending: set[PendingWrite | PendingCopies] = set()
        # By key. A demotion is removed when new rows are inserted under its key: the new rows supersede it.
        self._pending_demotions: dict[bytes, Demotion] = {}
        self._num_leases = 0

    def pin(self, key: bytes, num_rows: int | None) -> Entry | None:
        """Look up and lease an entry. If it does not have `num_rows` rows, drop it."""
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
            pool.leased_pages += entry.num_pages
        entry.leases += 1
        self._num_leases += 1
        return entry

    def report_corrupt(self, entry: Entry) -> None:
        """Count the hit on `entry` as a miss, and drop the entry: its rows do not match their checksum."""
        hits = self._hits[entry.pool.tier]
        hits.hits -= 1
        hits.rows -= entry.num_rows
        hits.saved_ms -= entry.cost
        self.counts.misses += 1
        self.counts.corruptions += 1
        # If `entry` is a host copy now, its device entry is dropped, too: that entry may have the wrong rows.
        if entry in (self.index.host.get(entry.key), self.index.host_copies.get(entry.key)):
            self._drop(entry.key)

    def unpin(self, entry: Entry) -> None:
        """Release a lease. If the entry was dropped and this was its last lease, free its pages."""
        self._num_leases -= 1
        entry.leases -= 1
        if entry.leases == 0:
            entry.pool.leased_pages -= entry.num_pages
            if entry in self._dropped:
                self._dropped.remove(entry)
                self._free(entry)

    def begin_write(self, key: bytes, num_rows: int, cost: float, epoch: int) -> PendingWrite | None:
        """Allocate device pages for a new entry, and evict victims.

        If too few pages are available, or `epoch` is not the current epoch, counts a rejection and returns
        None.
        """
        count = self.device.pages_for(num_rows)
        if epoch != self.epoch or count > self.device.num_available:
            self.counts.rejections += 1
            return None
        self._reclaim(self.device, count)
        old = self.index.device.get(key)
        # The new rows take the pages of the entry that they replace before other entries are evicted.
        if old is not None and old.leases == 0 and self.device.num_free < count:
            self._drop(key)
        return self._allocate_pages(key, num_rows, cost, None)

    def begin_promotion(self, source: Entry) -> PendingWrite | None:
        """Allocate device pages for a copy of a host entry, and evict victims.

        If `source` was removed from the host tier, or too few device pages are available, returns None.
        """
        is_host_entry = self.index.host.get(source.key) is source
        if not is_host_entry or len(source.pages) > self.device.num_available:
            return None
        return self._allocate_pages(source.key, source.num_rows, source.cost, source)

    def begin_early_copies(self, num_rows: Iterable[int]) -> PendingCopies | None:
        """Allocate host pages for early copies of the device entries that `num_rows` would evict.

        `num_rows` has the number of rows of each item. If no entry needs an early copy, returns None.
        """
        if self.host is None:
            return None
        count = min(sum(map(self.device.pages_for, num_rows)), self.device.num_available)
        victims = self._victims(self.device, count)
        # Existing host copies of these victims must not be evicted for the new copies. Until host pages are
        # allocated, they are not in the index, and their pages count as pending.
        host_copies = self.index.host_copies
        copied = {victim.key: host_copies.pop(victim.key) for victim in victims if victim.key in host_copies}
        protected_pages = sum(copy.num_pages for copy in copied.values() if copy.leases == 0)
        self.host.pending_pages += protected_pages
        fences: set[Fence] = set()
        demotions = []
        # In order of eviction: if host pages run out, the victims that are evicted last have no early copy.
        for victim in reversed(victims):
            if victim.key not in copied and self.index.is_worth_copy(victim):
                demotion = self._demote(victim, fences)
                if demotion is not None:
                    fences.add(victim.written)
                    demotions.append(demotion)
        self.host.pending_pages -= protected_pages
        host_copies |= copied
        if not demotions:
            return None
        copies = PendingCopies(demotions, fences)
        self._pending.add(copies)
        return copies

    def finish_write(self, pending: PendingWrite, fence: Fence | None, *, failed: bool = False) -> bool:
        """Insert the rows that were written before `fence`. Return whether they were inserted.

        If the write failed, or its epoch is not the current epoch, frees the pages instead. A failed write
        may have no fence. If the write was finished before, does nothing.
        """
        if not self._remove_pending(pending):
            return False
        source, copies = pending.source, pending.copies
        if fence is None or failed or pending.epoch != self.epoch:
            # Perhaps no stream has waited for these fences yet, so the freed pages keep all of them.
            fences = tuple(copies.fences) if fence is None else (*copies.fences, fence)
            for demotion in reversed(copies.demotions):
                self._end_demotion(demotion)
                demotion.pool.free(demotion.pages, fences)
                self.counts.evictions += 1
            pending.pool.free(pending.leftover_pages, fences)
            pending.pool.free(pending.pages, fences)
            self.counts.rejections += not failed and source is None
            return False
        before = tuple(copies.fences)
        for demotion in reversed(copies.demotions):
            if self._end_demotion(demotion):
                self.index.add(demotion.host_entry(copies.copied or fence))
                self.counts.demotions += 1
                self.counts.writebacks += 1
            else:
                demotion.pool.free(demotion.pages, before)
                self.counts.evictions += 1
        pending.pool.free(pending.leftover_pages, before)
        if source is not None and self.index.host.get(source.key) is not source:
            pending.pool.free(pending.pages, (fence,))
            return False
        entry = Entry(pending.key, pending.num_rows, pending.cost, pending.pool, pending.pages, fence)
        if source is not None:
            self.index.promote(entry)
            self.counts.promotions += 1
            return True
        self._pending_demotions.pop(pending.key, None)
        if pending.key in self.index:
            self._drop(pending.key)
        self.index.add(entry)
        self.counts.insertions += 1
        return True

    def finish_early_copies(
        self, copies: PendingCopies, fence: Fence | None, *, failed: bool = False
    ) -> None:
        """Insert the copies that were made before `fence` as host copies.

        If the copies failed, or their entry has left the device tier, frees the pages instead. `fence` and
        `failed` as in `finish_write`.
        """
        if not self._remove_pending(copies):
            return
        for demotion in copies.demotions:
            entry = demotion.entry
            # If the entry was evicted during the copy, its pages may contain other rows: the copy is
            # discarded.
            is_in_device_tier = self.index.device.get(entry.key) is entry
            if is_in_device_tier and fence is not None:
                copies.replaced.append(entry.reads.get(fence.stream))
                entry.reads[fence.stream] = fence
            has_host_copy = entry.key in self.index.host_copies
            if is_in_device_tier and fence is not None and not failed and not has_host_copy:
                self.index.host_copies[entry.key] = demotion.host_entry(fence)
                self.counts.writebacks += 1
            else:
                fences = copies.fences if fence is None else {*copies.fences, fence}
                demotion.pool.free(demotion.pages, tuple(fences))

    def advance(self) -> None:
        """Begin a new epoch in constant time. The pages of earlier entries are freed when they are needed."""
        if len(self.index):
            self.counts.evictions += len(self.index)
            self._stale.append(self.index)
            self.index = self._new_index()
        self._pending_demotions.clear()
        self.epoch += 1

    def clear(self) -> None:
        """Begin a new epoch, and free the pages of all entries."""
        self.advance()
        while self._stale:
            self._reclaim_one()

    def stats(self) -> CacheStats:
        """Return a snapshot of all counts and sizes."""
        used = [(pool.num_pages - pool.num_free) * pool.page_bytes for pool in self._pools]
        capacity = [pool.num_pages * pool.page_bytes for pool in self._pools]
        return CacheStats(
            hits=sum(hits.hits for hits in self._hits.values()),
            **asdict(self.counts),
            entries=len(self.index),
            leased_pages=sum(pool.leased_pages for pool in self._pools),
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

    def find_violations(self) -> list[str]:
        """Describe every violated invariant; empty if the cache is consistent."""
        indices = [self.index, *self._stale]
        entries = [*(entry for index in indices for entry in index), *self._dropped]
        violations = []
        for pool in self._pools:
            pool_entries = [entry for entry in entries if entry.pool is pool]
            pending_pages = [page for pending in self._pending for page in pending.pages_of(pool)]
            used = [page for entry in pool_entries for page in entry.pages]
            owners = Counter([*pool.free_pages, *pending_pages, *used])
            wrong = [page for page in range(pool.num_pages) if owners.pop(page, 0) != 1] + sorted(owners)
            violations += [f"{pool.tier} pages {wrong} do not have exactly one owner"] if wrong else []
            leased = sum(len(entry.pages) for entry in pool_entries if entry.leases)
            violations += _differ(f"leased {pool.tier} pages", leased, pool.leased_pages)
            violations += _differ(f"pending {pool.tier} pages", len(pending_pages), pool.pending_pages)
            for index in indices:
                keys = sorted(index.device if pool is self.device else index.host)
                violations += _differ(
                    f"keys in the policy of the {pool.tier} tier",
                    keys,
                    sorted(index.eviction_order(pool.tier)),
                )
            for entry in pool_entries:
                violations += _differ("pages of an entry", pool.pages_for(entry.num_rows), len(entry.pages))
        violations += _differ("leases", sum(entry.leases for entry in entries), self._num_leases)
        leased = sum(entry.leases > 0 for entry in self._dropped)
        violations += _differ("dropped entries that wait for a release", leased, len(self._dropped))
        for index in indices:
            violations += _differ("keys in both tiers", [], sorted(index.device.keys() & index.host.keys()))
            without_entry = sorted(index.host_copies.keys() - index.device.keys())
            violations += _differ("host copies without a device entry", [], without_entry)
        writes = [pending for pending in self._pending if isinstance(pending, PendingWrite)]
        demotions = {demotion for write in writes for demotion in write.copies.demotions}
        orphans = set(self._pending_demotions.values()) - demotions
        violations += _differ("demotions without a pending write", 0, len(orphans))
        present = len(self.index) + len(demotions)
        violations += _differ("entries", present, self.counts.insertions - self.counts.evictions)
        return violations

    def _allocate_pages(self, key: bytes, num_rows: int, cost: float, source: Entry | None) -> PendingWrite:
        """Allocate device pages for `num_rows` rows, which must be available, and demote or evict victims."""
        count = self.device.pages_for(num_rows)
        victims = self._victims(self.device, count)
        free, fences = self.device.allocate(min(count, self.device.num_free))
        uncopied = []  # victims that are worth a copy to the host tier and have none
        for victim in reversed(victims):
            is_worth_copy = self.index.evict(victim)
            fences.update(victim.fences())
            if self.index.restore_host_copy(victim.key):
                self.counts.demotions += 1
            elif is_worth_copy:
                uncopied.append(victim)
            else:
                self.counts.evictions += 1
        demotions = []
        for victim in reversed(uncopied):
            demotion = self._demote(victim, fences)
            if demotion is None:
                self.counts.evictions += 1
            else:
                demotions.append(demotion)
                self._pending_demotions[victim.key] = demotion
        # In ascending order, so that one copy moves a run of adjacent pages.
        pages = tuple(sorted([*free, *(page for victim in victims for page in victim.pages)]))
        self.device.pending_pages += len(pages)
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

    def _remove_pending(self, pending: PendingWrite | PendingCopies) -> bool:
        """Remove a pending write or pending copies. Return whether they were pending."""
        if pending not in self._pending:
            return False
        self._pending.remove(pending)
        for pool in self._pools:
            pool.pending_pages -= len(pending.pages_of(pool))
        return True

    def _end_demotion(self, demotion: Demotion) -> bool:
        """Remove a pending demotion. Return False if it is superseded.

        A demotion is superseded if rows were inserted under its key after it began, even if those rows
        have left the cache since, or if the epoch has changed.
        """
        if self._pending_demotions.get(demotion.entry.key) is not demotion:
            return False
        del self._pending_demotions[demotion.entry.key]
        return True

    def _victims(self, pool: PagePool, count: int) -> list[Entry]:
        """Choose entries whose eviction leaves `count` pages free, in reverse order of eviction.

        `count` pages must be available. Frees entries of earlier epochs. The caller evicts the chosen
        entries.
        """
        self._reclaim(pool, count)
        short = count - pool.num_free
        chosen: list[Entry] = []
        for entry in self.index.victims(pool.tier):
            if short <= 0:
                break
            if entry.leases == 0:
                chosen.append(entry)
                short -= len(entry.pages)
        # A large victim may suffice without smaller victims that were chosen before it.
        needed = []
        for entry in reversed(chosen):
            if short + len(entry.pages) <= 0:
                short += len(entry.pages)
            else:
                needed.append(entry)
        return needed

    def _demote(self, entry: Entry, fences: set[Fence]) -> Demotion | None:
        """Allocate host pages for a device entry, and add their fences to `fences`. Evicts host entries.

        Returns None if too few host pages are available.
        """
        if self.host is None or len(entry.pages) > self.host.num_available:
            return None
        for victim in self._victims(self.host, len(entry.pages)):
            is_host_copy = victim.key in self.index.host_copies
            self.index.evict(victim)
            self.counts.evictions += not is_host_copy
            self._free(victim)
        pages, host_fences = self.host.allocate(len(entry.pages))
        self.host.pending_pages += len(pages)
        fences |= host_fences
        return Demotion(entry, self.host, pages)

    def _reclaim(self, pool: PagePool, count: int) -> None:
        """Free entries of earlier epochs until `count` pages are free or all those entries are freed."""
        while self._stale and pool.num_free < count:
            self._reclaim_one()

    def _reclaim_one(self) -> None:
        if len(self._stale[-1]):
            for entry in self._stale[-1].pop():
                self._free(entry)
        else:
            self._stale.pop()

    def _drop(self, key: bytes) -> None:
        """Remove the entry of a key, and its host copy, from the cache."""
        self.counts.evictions += 1
        for entry in self.index.remove(key):
            self._free(entry)

    def _free(self, entry: Entry) -> None:
        """Free the pages of an entry that is in no index. If it is leased, its last release frees them."""
        if entry.leases:
            self._dropped.add(entry)
        else:
            entry.pool.free(entry.pages, entry.fences())

    def _new_index(self) -> Index:
        return Index(self._policy, self._pools)


def _differ(name: str, expected: object, recorded: object) -> list[str]:
    return [] if expected == recorded else [f"{name}: expected {expected}, recorded {recorded}"]
