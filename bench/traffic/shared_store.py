"""Simulates the source of missing images in a fleet: a shared store, a disk per machine, or their encode.

A machine that misses images of a request asks the store for all of them at the time of the request. Each link
of a storage node or a machine is a queue, first in, first out; a transfer ends when both of its links have
served it. A fetch that ends after the deadline is late: its image is encoded, and the breaker of the machine
opens until one second after the end of that fetch.

This is a simulation. It leaves out: the queue of a machine's encoder; the time of hashes, clients, nodes and
the master beyond the constants; congestion inside the network; failures; that transfers share a link at the
same time; the rule of the second hit (an encoded image is stored at once); and a bandwidth that is measured:
the rule of `Below.worth` divides by the rate of an idle link.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from vitcache.bench.traffic.fleet import Missing
from vitcache.bench.traffic.traces import Access

BREAKER_S = 1.0  # `docs/tiers.md`: the breaker stays open for 1 s after a late call


class Link(NamedTuple):
    """Bytes per second: of each link of a machine or node per direction, and of one machine's transfers."""

    line: float
    machine: float


@dataclass(frozen=True)
class Below:
    """A store below the caches of all machines, or a disk of each machine if `is_shared` is false.

    An image is fetched and stored only if its transfer takes at most `worth` of its encode time; None:
    always. With `single_flight`, a machine waits for an image that another one encodes or stores.
    """

    link: Link
    num_bytes: float  # of the whole store, or of one disk
    nodes: int = 1
    is_shared: bool = True
    worth: float | None = None
    single_flight: bool = False
    call_s: float = 0.0  # a look-up takes `call_s`, and `key_s` for each of its keys
    key_s: float = 0.0
    deadline_s: float = inf

    def is_worth(self, image: Access, row_bytes: int) -> bool:
        """Whether the image is fetched and stored."""
        seconds = image.num_rows * row_bytes / self.link.machine
        return self.worth is None or seconds <= self.worth * image.encode_ms / 1e3


@dataclass
class Counts:
    """Counts of one replay. A late fetch counts as an encode, not as a hit: ``hits + encodes == lookups``.

    `rows_s` sums, over requests, the seconds from the request until all its missing images have rows.
    """

    lookups: int = 0  # images that their machine has in neither tier
    hits: int = 0
    late: int = 0
    encodes: int = 0
    calls: int = 0  # to the store, each with `keys` of one request
    keys: int = 0
    encode_s: float = 0.0
    rows_s: float = 0.0
    fetched_bytes: float = 0.0
    stored_bytes: float = 0.0
    sent_bytes: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # by storage node

    def add_encodes(self, images: Sequence[Access]) -> float:
        """Count encodes; return their seconds."""
        seconds = sum(image.encode_ms for image in images) / 1e3
        self.encodes += len(images)
        self.encode_s += seconds
        return seconds


class _Node:
    """The entries of a storage node: their bytes and the time they are complete, last used last."""

    def __init__(self) -> None:
        self.entries: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self.used = self.sends_at = self.receives_at = 0.0  # bytes; when each direction of its link is free


def replay(missing: Sequence[Missing], row_bytes: int, below: Below | None, begin_s: float = 0.0) -> Counts:
    """Serve the missing images in order; count those of requests from `begin_s` on. None: encode all."""
    warm_up, counts = Counts(), Counts()
    store = None if below is None else _Store(row_bytes, below)
    for batch in missing:
        into = counts if batch.at_s >= begin_s else warm_up
        into.lookups += len(batch.images)
        into.rows_s += into.add_encodes(batch.images) if store is None else store.serve(batch, into)
    return counts


class _Store:
    """The state of one replay: the entries, the links, and the breakers."""

    def __init__(self, row_bytes: int, below: Below) -> None:
        self._row_bytes, self._below = row_bytes, below
        self._node_bytes = below.num_bytes / (below.nodes if below.is_shared else 1)
        self._nodes: dict[int, _Node] = defaultdict(_Node)
        self._free_at: dict[int, float] = defaultdict(float)  # the link of each machine
        self._open_until: dict[int, float] = defaultdict(float)  # its breaker

    def serve(self, batch: Missing, counts: Counts) -> float:
        """Fetch images and encode the rest; return the seconds until all have rows."""
        at_s, machine, images = batch
        below = self._below
        asked: list[Access] = []
        encoded: list[Access] = []
        for image in images:
            is_asked = at_s >= self._open_until[machine] and below.is_worth(image, self._row_bytes)
            (asked if is_asked else encoded).append(image)
        ready = begin = at_s + (below.call_s + below.key_s * len(asked) if asked else 0.0)
        deadline, last = at_s + below.deadline_s, begin
        absent = []
        for image in asked:
            end = self._fetch(image, machine, begin, counts)
            if end is None:
                absent.append(image)
            elif end <= deadline:
                counts.hits += 1
                ready = max(ready, end)
            else:
                counts.late += 1
                encoded.append(image)
                ready, last = deadline, max(last, end)
        if last > deadline:
            self._open_until[machine] = last + BREAKER_S
        counts.calls += bool(asked)
        counts.keys += len(asked)
        done = ready + counts.add_encodes(encoded + absent)
        for image in absent:
            self._store(image, machine, done, counts)
        return done - at_s

    def _place(self, image: Access, machine: int) -> int:
        return image.key[0] % self._below.nodes if self._below.is_shared else machine

    def _fetch(self, image: Access, machine: int, begin: float, counts: Counts) -> float | None:
        """Return the time at which the rows are in the machine; None: the store does not have them."""
        place, link = self._place(image, machine), self._below.link
        node = self._nodes[place]
        entry = node.entries.get(image.key)
        if entry is None or (entry[1] > begin and not self._below.single_flight):
            return None
        node.entries.move_to_end(image.key)
        begin = max(begin, entry[1])
        node.sends_at = max(begin, node.sends_at) + entry[0] / link.line
        self._free_at[machine] = max(begin, self._free_at[machine]) + entry[0] / link.machine
        counts.fetched_bytes += entry[0]
        counts.sent_bytes[place] += entry[0]
        return max(node.sends_at, self._free_at[machine])

    def _store(self, image: Access, machine: int, at_s: float, counts: Counts) -> None:
        """Store rows unless the entry exists; evict the entries that were used longest ago."""
        node, size = self._nodes[self._place(image, machine)], image.num_rows * self._row_bytes
        if image.key in node.entries or size > self._node_bytes:
            return
        while node.used + size > self._node_bytes:
            node.used -= node.entries.popitem(last=False)[1][0]
        start = max(at_s, node.receives_at)
        node.receives_at = start + size / self._below.link.line
        node.entries[image.key] = size, start + size / self._below.link.machine
        node.used += size
        counts.stored_bytes += size
