"""Simulates the caches of many machines: which images of a trace each machine misses.

Each machine has the device tier and the host tier of a cache (`simulation.TwoTiers`), and one policy. A store
below the caches does not change their contents: a missing image enters the cache of its machine, whether it
is encoded or fetched. So one run of the caches serves every store of `shared_store`.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from itertools import takewhile
from typing import NamedTuple

from vitcache.bench.traffic.simulation import PAGE_ROWS, TwoTiers
from vitcache.bench.traffic.traces import Access, Request, Traffic

BY_SESSION, AT_RANDOM = "by session", "at random"
GIB = 1 << 30
DEVICE_BYTES, HOST_BYTES = 4 * GIB, 16 * GIB  # of each machine: the two tiers of the bench `policy`


class Missing(NamedTuple):
    """The images of one request that its machine has in neither tier."""

    at_s: float
    machine: int
    images: list[Access]


def make_requests(machines: int, clients_per_s: float, seconds: float, seed: int = 0) -> list[Request]:
    """Return the requests of shared chats; `clients_per_s` new ones begin per machine and second.

    The same arguments give the same requests.
    """
    rates = {"shared_chat": clients_per_s * machines}
    return list(takewhile(lambda request: request.at_s < seconds, Traffic(seed).requests(rates)))


def missing_images(
    requests: Iterable[Request],
    machines: int,
    route: str,
    row_bytes: int,
    *,
    device_bytes: int = DEVICE_BYTES,
    host_bytes: int = HOST_BYTES,
) -> list[Missing]:
    """Run the caches of all machines; return the images that they miss, by request.

    The machine of a request follows from a hash of its client, or at random from its own number: the hash
    modulo the number of machines. So twice the machines split the requests of each machine into two parts.
    """
    page = row_bytes * PAGE_ROWS
    caches = [TwoTiers("lru", device_bytes // page, host_bytes // page) for _ in range(machines)]
    found = []
    for number, (at_s, client, images) in enumerate(requests):
        machine = _hash(client if route == BY_SESSION else -1 - number) % machines
        access = caches[machine].access
        missing = [image for image in images if not access(*image)]
        if missing:
            found.append(Missing(at_s, machine, missing))
    return found


def _hash(number: int) -> int:
    return int.from_bytes(blake2b(str(number).encode(), digest_size=8).digest(), "little")
