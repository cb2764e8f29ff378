"""Fetches and stores of the bench `mooncake`: a `MooncakeTier` and the store's own batch calls, in turns."""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vitcache import EmbeddingCache, MooncakeTier, WriteBack
from vitcache.bench.claims.tier_reads import ReadCase, check_rows, expect_all
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.store_cluster import store_cluster
from vitcache.bench.harness.timing import Sample, Timer, gb_per_s
from vitcache.tiers import EntryName, Transfer

CONTIGUOUS, SCATTERED = "store's batch call", "store's batch call, pages"
# A put returns 0 also where nothing is stored, so a client that reports a result looks the entries up.
LOOKED_UP = "store's batch call, pages, then look-up"
TIER, CACHE = "MooncakeTier", "cache.fetch"
LEAST_SHARE = 0.9  # of the throughput of the store's own calls with the same pages
PAGE_BYTES = 512 << 10
_WAIT_S = 60.0


@dataclass(frozen=True)
class TransferCase(ReadCase):
    """`entries` entries of `rows` rows of `width` bfloat16 elements, in shuffled pages of 512 KiB."""


class Pages:
    """Memory for entries: `contiguous`, and `parts` in shuffled pages, of which the last one is not full."""

    def __init__(self, case: TransferCase) -> None:
        each = -(-case.entry_bytes // PAGE_BYTES)
        self.contiguous = _new_memory(case.entries * case.entry_bytes)
        self.entries = np.split(self.contiguous, case.entries)
        self.memory = _new_memory(case.entries * each * PAGE_BYTES)
        pages = list(self.memory.reshape(-1, PAGE_BYTES))
        random.Random(0).shuffle(pages)
        self.parts = [
            _cut(pages[number * each : (number + 1) * each], case.entry_bytes)
            for number in range(case.entries)
        ]

    def fill(self, rows: np.ndarray) -> None:
        """Write the rows of all entries to both memories."""
        self.contiguous[:] = rows
        for entry, parts in zip(self.entries, self.parts, strict=True):
            at = 0
            for part in parts:
                part[:] = entry[at : at + part.size]
                at += part.size

    def clear(self) -> None:
        """Overwrite both memories."""
        self.contiguous.fill(0xEE)
        self.memory.fill(0xEE)

    def scattered(self) -> np.ndarray:
        """Return the bytes of all entries in the pages."""
        return np.concatenate([part for parts in self.parts for part in parts])


class RawStore:
    """The store's own batch calls, without headers and checksums, with memory that is registered."""

    def __init__(self, address: str, keys: Sequence[bytes], pages: Pages) -> None:
        from mooncake import store as engine

        self._store: Any = engine.MooncakeDistributedStore()
        host = address.partition(":")[0]
        if self._store.setup(host, "P2PHANDSHAKE", 0, 16 << 20, "tcp", "", address):
            raise RuntimeError(f"the master at {address} refuses a client")
        self.close: Callable[[], object] = self._store.close
        for memory in (pages.contiguous, pages.memory):
            if self._store.register_buffer(_address(memory), memory.nbytes):
                raise RuntimeError("the store registers no memory")
        self._keys = [f"contiguous/{key.hex()}" for key in keys]
        self._paged_keys = [f"pages/{key.hex()}" for key in keys]
        self._places = [_address(entry) for entry in pages.entries]
        self._sizes = [entry.nbytes for entry in pages.entries]
        self._part_places = [[_address(part) for part in parts] for parts in pages.parts]
        self._part_sizes = [[part.nbytes for part in parts] for parts in pages.parts]

    def get(self) -> None:
        """Read all entries into contiguous memory."""
        self._expect(self._store.batch_get_into(self._keys, self._places, self._sizes), self._sizes)

    def get_pages(self) -> None:
        """Read all entries into pages."""
        codes = self._store.batch_get_into_multi_buffers(
            self._paged_keys, self._part_places, self._part_sizes
        )
        self._expect(codes, self._sizes)

    def put(self) -> None:
        """Write all entries from contiguous memory."""
        self._expect(self._store.batch_put_from(self._keys, self._places, self._sizes))

    def put_pages(self) -> None:
        """Write all entries from pages. They have other keys: each kind of call uses memory of its own."""
        codes = self._store.batch_put_from_multi_buffers(
            self._paged_keys, self._part_places, self._part_sizes
        )
        self._expect(codes)

    def put_pages_and_look_up(self) -> None:
        """Write all entries from pages, and find out whether they can be read."""
        self.put_pages()
        self._expect(self._store.batch_is_exist(self._paged_keys), [1] * len(self._keys))

    def exist(self) -> None:
        """Look up all entries that `put` wrote."""
        self._expect(self._store.batch_is_exist(self._keys), [1] * len(self._keys))

    def remove(self) -> None:
        """Remove the entries that `put` wrote, also leased ones."""
        self._store.batch_remove(self._keys, True)

    def remove_pages(self) -> None:
        """Remove the entries that `put_pages` wrote, also leased ones."""
        self._store.batch_remove(self._paged_keys, True)

    def _expect(self, codes: list[int], expected: list[int] | None = None) -> None:
        if list(codes) != (expected or [0] * len(self._keys)):
            raise RuntimeError(f"a call of the store gave the codes {codes}: it gets no number")


def run_transfers(case: TransferCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure fetches and stores; yields a label before each part."""
    with ExitStack() as stack:
        yield "store"
        total = case.entries * case.entry_bytes
        cluster = stack.enter_context(store_cluster(1, node_bytes=6 * total + (64 << 20)))
        rows = torch.randn(case.entries, case.rows, case.width).to(torch.bfloat16)
        expected = rows.view(torch.uint8).view(-1).numpy()
        pages = Pages(case)
        tier = MooncakeTier(cluster.address, worth=None)
        tier.open()
        stack.callback(tier.close)
        tier.register(pages.memory)
        raw = RawStore(cluster.address, case.keys, pages)
        stack.callback(raw.close)
        transfers = [
            Transfer(name, parts) for name, parts in zip(names_of(case, case.keys), pages.parts, strict=True)
        ]
        pages.fill(expected)
        raw.put()
        raw.put_pages()
        expect_all(tier.store(transfers))
        _fill(case, cluster.address, rows)
        cache = stack.enter_context(open_cache(case, cluster.address))
        fetches: dict[str, Callable[[], object]] = {
            CONTIGUOUS: raw.get,
            SCATTERED: raw.get_pages,
            TIER: lambda: expect_all(tier.fetch(transfers)),
            CACHE: lambda: expect_all(cache.fetch(case.keys, case.rows, timeout_s=_WAIT_S)),
        }
        discard: dict[str, Callable[[], object]] = {name: lambda: None for name in fetches}
        discard[CACHE] = lambda: [cache.discard(key, tier="host") for key in case.keys]
        for name, fetch in fetches.items():
            pages.clear()
            discard[name]()
            fetch()
            if name == CACHE:
                check_rows(cache, case, rows)
            else:
                _check(name, pages.contiguous if name == CONTIGUOUS else pages.scattered(), expected)
        yield "fetches in turns"
        samples = timer.rounds_us(fetches, before=discard)
        _add(case, recorder, "fetch_gb_per_s", {n: gb_per_s(s, total) for n, s in samples.items()})
        yield "stores in turns"
        pages.fill(expected)
        stores: dict[str, Callable[[], object]] = {
            CONTIGUOUS: raw.put,
            SCATTERED: raw.put_pages,
            LOOKED_UP: raw.put_pages_and_look_up,
            TIER: lambda: expect_all(tier.store(transfers)),
        }
        remove: dict[str, Callable[[], object]] = {
            CONTIGUOUS: raw.remove,
            SCATTERED: raw.remove_pages,
            LOOKED_UP: raw.remove_pages,
            TIER: lambda: [tier.erase(key=key) for key in case.keys],
        }
        few = timer.with_repeats(max(3, timer.repeats // 2))
        samples = few.rounds_us(stores, before=remove)
        pages.clear()
        raw.get()
        expect_all(tier.fetch(transfers))
        _check("a store", pages.contiguous, expected)
        _check("a store", pages.scattered(), expected)
        pages.clear()
        raw.get_pages()
        _check("a store", pages.scattered(), expected)
        _add(case, recorder, "store_gb_per_s", {n: gb_per_s(s, total) for n, s in samples.items()})


def names_of(case: TransferCase, keys: Sequence[bytes]) -> list[EntryName]:
    """Return the names of entries with these keys."""
    return [EntryName(bytes(32), bytes(32), key, case.rows, 2 * case.width) for key in keys]


def open_cache(case: TransferCase, master: str) -> EmbeddingCache:
    """Return a cache with the store as its tier, whose host tier has twice the bytes of the entries."""
    size = max(case.entries * case.entry_bytes, 1 << 20)
    return EmbeddingCache(
        case.width,
        device="cpu",
        device_bytes=2 * size,
        host_bytes=2 * size,
        tiers=[MooncakeTier(master, worth=None)],
        weights_name="bench",
        write_back=WriteBack(hits=0, queue_bytes="1TiB"),
    )


def _fill(case: TransferCase, master: str, rows: torch.Tensor) -> None:
    """Store the rows through a cache, as an application does."""
    with open_cache(case, master) as cache:
        for key, values in zip(case.keys, rows, strict=True):
            cache.put(key, values)
        if not cache.flush(_WAIT_S) or cache.stats().tiers[0].stored != case.entries:
            raise RuntimeError("the cache has not stored the entries: it gets no number")


def _add(case: TransferCase, recorder: Recorder, metric: str, rates: dict[str, Sample]) -> None:
    """Record rates. A fetch has a target: a share of the rate of the store's own calls.

    A store has none: its checksum reads each byte once more, and no caller waits for it.
    """
    reference = LOOKED_UP if LOOKED_UP in rates else SCATTERED
    least = LEAST_SHARE * rates[reference].value
    for name, rate in rates.items():
        is_judged = case.is_judged and name == TIER and reference == SCATTERED
        recorder.add(
            *(case.name, name, metric, "GB/s", rate),
            bytes_moved=case.entries * case.entry_bytes,
            against=(reference, rates[reference].value),
            target=LEAST_SHARE if is_judged else None,
            limit=least if is_judged else None,
            at_least=True,
        )


def _check(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    if not np.array_equal(found, expected):
        raise RuntimeError(f"{name} moved other bytes than were stored: it gets no number")


def _new_memory(num_bytes: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, num_bytes), np.uint8)


def _address(memory: np.ndarray) -> int:
    address: int = memory.__array_interface__["data"][0]
    return address


def _cut(pages: Sequence[np.ndarray], num_bytes: int) -> list[np.ndarray]:
    """Return the pages without the end of the last one."""
    return [*pages[:-1], pages[-1][: num_bytes - (len(pages) - 1) * PAGE_BYTES]]
