"""A disk below the host tier of a model worker: fetches end when a test says so, or at random."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from vitcache.adapters.vllm.counts import Counts
from vitcache.adapters.vllm.orders import ItemKey
from vitcache.adapters.vllm.tier_fetches import Item, TierFetches
from vllm_scene.worker import Broken, Content, WorkerModel


@dataclass
class FakeFetch:
    """One fetch; `end` ends it, as the thread of a tier does."""

    disk: FakeDisk
    item: Item
    done: bool = False
    is_reserved: bool = False
    is_cancelled: bool = False
    is_void: bool = False  # of an earlier epoch

    def found(self) -> bool:
        assert self.done
        return self.item.key in self.disk.worker.host or self.item.key in self.disk.worker.device

    def cancel(self) -> None:
        self.is_cancelled = True

    def reserve(self) -> None:
        """Take host pages, which must be free: a fetch that evicts would lose entries of the inventory."""
        self.disk.worker.num_fetching += self.item.num_pages
        self.is_reserved = True
        self.disk.worker.check_pages()

    def end(self) -> None:
        """Enter the rows that the disk has, unless the worker has rows of the key."""
        worker, key = self.disk.worker, self.item.key
        content = self.disk.contents.get(key)
        if self.is_reserved:
            worker.num_fetching -= self.item.num_pages
        is_wanted = self.is_reserved and not self.is_cancelled and not self.is_void
        is_there = key in worker.device or key in worker.host
        if is_wanted and not is_there and content is not None and content[2] == self.item.num_rows:
            worker.host[key] = content
        self.done = True
        self.disk.running.remove(self)
        worker.check_pages()


@dataclass
class FakeDisk:
    """A `Fetcher` over a model worker.

    `is_off`: the breaker is open, so fetches end at once. `lost` are pages that a fetch may still write.
    """

    worker: WorkerModel
    num_pages: int
    contents: dict[ItemKey, Content] = field(default_factory=dict)
    running: list[FakeFetch] = field(default_factory=list)
    num_begun: int = 0
    num_resets: int = 0
    is_off: bool = False
    lost: int = 0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.worker.disk = self.contents
        self.worker.fetch_pages = self.num_pages

    def begin(self, item: Item) -> FakeFetch:
        if any(fetch.item.key == item.key and not fetch.is_void for fetch in self.running):
            raise Broken(f"{item.key} is fetched twice at a time")
        fetch = FakeFetch(self, item)
        self.num_begun += 1
        if self.is_off:
            fetch.done = True
        else:
            self.running.append(fetch)
        return fetch

    def num_lost_pages(self) -> int:
        return self.lost

    def counts(self) -> dict[str, float]:
        return {}

    def reset(self) -> None:
        self.num_resets += 1
        self.contents.clear()
        for fetch in self.running:
            fetch.is_void = True
        self.worker.device, self.worker.host = {}, {}

    def clock(self) -> float:
        return self.now

    def fetches(self, counts: Counts, timeout_s: float = 0.1) -> TierFetches:
        """Return the scheduler's side."""
        return TierFetches(self, self.num_pages, timeout_s, counts, clock=self.clock)

    def end_all(self) -> None:
        """End all fetches now."""
        for fetch in list(self.running):
            if not fetch.is_reserved and fetch.item.key in self.contents:
                fetch.reserve()
            fetch.end()


class RandomDisk(FakeDisk):
    """A disk whose fetches proceed while the scheduler works, and whose memory is sometimes not safe."""

    def __init__(self, worker: WorkerModel, num_pages: int, seed: int) -> None:
        super().__init__(worker, num_pages)
        self._rng = random.Random(seed)

    def clock(self) -> float:
        self.now += self._rng.random() * 0.02
        for fetch in list(self.running):
            chance = self._rng.random()
            if chance < 0.2 and not fetch.is_reserved and fetch.item.key in self.contents:
                fetch.reserve()
            elif 0.2 <= chance < 0.4:
                fetch.end()
            elif chance > 0.98 and fetch.is_reserved and not self.lost:
                self.lost = fetch.item.num_pages
                self.worker.num_fetching += self.lost
                fetch.is_cancelled = True
                fetch.end()
        if self.lost and self._rng.random() < 0.2:
            self.worker.num_fetching -= self.lost
            self.lost = 0
        self.is_off = self._rng.random() < 0.1
        return self.now
