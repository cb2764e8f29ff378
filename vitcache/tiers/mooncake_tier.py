"""`MooncakeTier`: a Mooncake store, which many machines share."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import SupportsIndex

import numpy as np

from vitcache.arguments import check_bool, shown, to_factor, to_int
from vitcache.handles import described, refuse_copies
from vitcache.tiers.checks import check_parts
from vitcache.tiers.mooncake_address import check_devices, check_host, host_and_port
from vitcache.tiers.mooncake_client import (
    BEING_WRITTEN,
    EXISTS,
    MISSED,
    REFUSED,
    WRONG_CHECKSUM,
    MooncakeClient,
    fail,
    load_engine,
)
from vitcache.tiers.mooncake_objects import (
    StoredObject,
    generation_key,
    groups,
    object_bytes,
    object_key,
    object_keys,
    pattern_of,
)
from vitcache.tiers.protocol import EntryName, FetchOutcome, Transfer
from vitcache.tiers.side_threads import SideThreads

logger = logging.getLogger("vitcache.tiers")

_MOST_REPLICAS = 64
_SIDE_THREADS = 4  # that compute checksums, beside the caller's
_NUMBER_TRIES = 20  # while another process writes the number of a generation
_NUMBER_WAIT_S = 0.02
DAMAGED = FetchOutcome.DAMAGED
_kept_for_ever: list[MooncakeClient] = []  # could not be closed, and may still write their memory


class MooncakeTier:
    """Keeps rows in a Mooncake store: memory of storage nodes, which a master lists. A `Tier`.

    Every process that reaches the master shares the entries, reads them and can erase them: the store has no
    passwords. Rows are read from the nodes directly into the pages of the host tier, many parts in one call.
    Each object has a checksum; one that does not match is a miss, and is removed.

    The store has no copy on a disk: a node that ends loses its entries, and a master all of them. A node
    that does not answer makes fetches late, and then the cache encodes.

    One thread at a time calls its methods, as a cache's worker thread does. The repr may be read by any
    thread. No method uses a stream. In a forked child, every method other than `close` raises RuntimeError if
    the parent had opened a tier of this class: such a child must be started by spawn.

    Parameters
    ----------
    master
        ``"host:port"`` of the master.
    local_host
        The address of this machine for the storage nodes. None: the one from which it reaches the master.
    protocol
        How rows are transferred: ``"tcp"`` or ``"rdma"``.
    devices
        Names of RDMA devices, divided by commas. ``""``: the engine chooses.
    replicas
        Number of nodes that keep each entry, at most 64. The store makes fewer if it has fewer nodes.
    single_flight
        Whether `claim` asks the store, so that one process in the fleet stores an entry, and no other one
        sends the same bytes. Such stores take about a third longer.
    worth
        Fetch and store an entry only if its transfer is expected to take at most this part of its encode.
        None: each entry.

    Raises
    ------
    TypeError
        If an argument has another type than its default, or `master` is not a str.
    ValueError
        If `master` is not ``"host:port"``, `local_host` or `devices` has other characters, `protocol` is
        unknown, `replicas` is not in 1 to 64, or `worth` is not finite and more than 0.
    ImportError
        If Mooncake's client cannot be loaded: ``pip install 'vitcache[mooncake]'``.

    Examples
    --------
    >>> from vitcache import MooncakeTier
    >>> MooncakeTier("127.0.0.1:50051")  # connects when a cache opens it
    <MooncakeTier 127.0.0.1:50051, tcp, closed>
    """

    name = "mooncake"
    capacity_bytes = 0

    def __init__(
        self,
        master: str,
        *,
        local_host: str | None = None,
        protocol: str = "tcp",
        devices: str = "",
        replicas: SupportsIndex = 1,
        single_flight: bool = False,
        worth: float | None = 0.5,
    ) -> None:
        self._master = host_and_port("master", master)
        if local_host is not None:
            check_host("local_host", local_host)
        check_devices("devices", devices)
        if protocol not in ("tcp", "rdma"):
            raise ValueError(f"protocol is {shown(protocol)}, it must be 'tcp' or 'rdma'")
        check_bool("single_flight", single_flight)
        self.worth = None if worth is None else to_factor("worth", worth)
        self._replicas = to_int("replicas", replicas, 1, _MOST_REPLICAS)
        self._local_host, self._protocol, self._devices = local_host, protocol, devices
        self._single_flight = single_flight
        self._address = master
        self._client: MooncakeClient | None = None
        self._pid = 0  # of the process that has opened it; 0: it is closed
        load_engine()

    def open(self) -> None:
        """Connect to the master.

        Raises
        ------
        RuntimeError
            If the tier is open, or a parent of this process had opened one before it forked.
        ConnectionError
            If the master does not answer, or refuses the client, or this machine has no RDMA device for
            ``protocol="rdma"``.
        """
        if self._pid == os.getpid():
            raise RuntimeError(
                f"the tier of the Mooncake store {self._address} is open; it belongs to one cache at a time"
            )
        self._client = None  # that of a parent
        self._pid = 0
        self._counts: Counter[str] = Counter()
        self._begun: dict[str, float] = {}  # objects whose write was begun, and the time until which
        self._side = SideThreads("vitcache-mooncake", _SIDE_THREADS)
        self._client = MooncakeClient(
            self._master, self._local_host, self._protocol, self._devices, self._replicas
        )
        self._pid = os.getpid()

    def register(self, memory: np.ndarray) -> None:
        """See `Tier.register`. RDMA cannot transfer other memory."""
        self._opened().register(memory)

    def exists(self, names: Sequence[EntryName]) -> list[bool]:
        """See `Tier.exists`. The store then keeps the entries for the time of its leases, about 10 s."""
        return self._opened().exist(object_keys(names))

    def fetch(self, fetches: Sequence[Transfer]) -> list[FetchOutcome]:
        """See `Tier.fetch`. Up to five threads compute checksums. If the master is away, all are UNSAFE.

        Raises
        ------
        MooncakeError
            If a damaged object cannot be removed.
        """
        client = self._opened()
        for fetch in fetches:
            check_parts(fetch)
        outcomes: list[FetchOutcome] = []
        for group in groups(fetches):
            objects = client.memory.objects(group)
            codes = client.get(objects)
            complete = [each for each, code in zip(objects, codes, strict=True) if code == each.num_bytes]
            self._side.share([each.hash for each in complete])
            outcomes += [self._outcome(each, code) for each, code in zip(objects, codes, strict=True)]
            if FetchOutcome.UNSAFE in outcomes:
                client.leave_memory()
                break
        outcomes += [FetchOutcome.MISS] * (len(fetches) - len(outcomes))
        self._drop(
            client, [each.name for each, outcome in zip(fetches, outcomes, strict=True) if outcome is DAMAGED]
        )
        return outcomes

    def _outcome(self, each: StoredObject, code: int) -> FetchOutcome:
        if code == each.num_bytes:
            if not each.is_intact():
                return DAMAGED
            each.scatter()
            return FetchOutcome.HIT
        self._counts[f"code {code}"] += 1
        if code == WRONG_CHECKSUM:
            return DAMAGED
        return FetchOutcome.MISS if code in MISSED else FetchOutcome.UNSAFE

    def _drop(self, client: MooncakeClient, damaged: Sequence[EntryName]) -> None:
        if damaged:
            self._counts["damaged"] += len(damaged)
            if self._counts["damaged"] == len(damaged):
                text = (
                    "Mooncake store %s: an object does not match its checksum, so it is removed; later ones "
                )
                logger.error(text + "are only counted", self._address)
            client.remove(object_keys(damaged))

    def store(self, stores: Sequence[Transfer]) -> list[bool]:
        """See `Tier.store`. False: the store has no space, or another process writes the entry now.

        Raises
        ------
        MooncakeError
            If a transfer fails, or the master does not answer.
        """
        client = self._opened()
        for store in stores:
            check_parts(store)
        stored: dict[str, bool] = {}
        for group in groups(list({store.name: store for store in stores}.values())):
            stored |= self._store(client, group)
        return [stored[object_key(store.name)] for store in stores]

    def _store(self, client: MooncakeClient, group: Sequence[Transfer]) -> dict[str, bool]:
        """Store one group. Returns which objects can be read."""
        objects = client.memory.objects(group)
        codes = self._begin(client, [each.name for each in group]) if self._single_flight else None
        chosen = [each for each in objects if codes is None or codes[each.key] == 0]
        for each in chosen:
            each.gather()
        self._side.share([each.hash for each in chosen])
        for each in chosen:
            each.write_header()
            # If the put fails, the node may still get bytes, into memory that must not be of another object
            # then: the claim lapses at the master, and `close` does not end it.
            self._begun.pop(each.key, None)
        put = client.put if codes is None else client.put_begun
        results = (codes or {}) | dict(zip((each.key for each in chosen), put(chosen), strict=True))
        for code in results.values():
            if code:
                self._counts[f"code {code}"] += 1
            if code not in (0, EXISTS) and code not in REFUSED:
                fail("store an object", code)
        # A put returns 0 also where it has stored nothing: another process writes the object, or has died.
        keys = [key for key, code in results.items() if code in (0, EXISTS)]
        return dict.fromkeys(results, False) | dict(zip(keys, client.exist(keys), strict=True))

    def claim(self, names: Sequence[EntryName], ttl_s: float) -> list[bool]:
        """See `Tier.claim`. A claim of a process that ends lapses at the master, after 30 s by default.

        Without `single_flight`, an entry that is not there can be claimed by every process.
        """
        client = self._opened()
        if not self._single_flight:
            return [not is_there for is_there in client.exist(object_keys(names))]
        self._abandon(client, time.monotonic())
        codes = self._begin(client, names, ttl_s)
        for code in codes.values():
            if code not in (0, EXISTS) and code not in REFUSED:
                fail("begin to store an object", code)
        return [codes[object_key(name)] not in (EXISTS, BEING_WRITTEN) for name in names]

    def _begin(
        self, client: MooncakeClient, names: Sequence[EntryName], ttl_s: float = 0.0
    ) -> dict[str, int]:
        """Begin to write entries that this object has not begun. Returns a code for each."""
        sizes = {object_key(name): object_bytes(name) for name in names}
        new = [key for key in sizes if key not in self._begun]
        codes = client.begin_put(new, [sizes[key] for key in new]) if new else []
        until = time.monotonic() + ttl_s
        self._begun |= {key: until for key, code in zip(new, codes, strict=True) if code == 0}
        return dict.fromkeys(sizes, 0) | dict(zip(new, codes, strict=True))

    def _abandon(self, client: MooncakeClient, now: float) -> None:
        """End the claims whose time is over, so that other processes can store the entries."""
        over = [key for key, until in self._begun.items() if until < now]
        if over:
            client.abandon(over)
        for key in over:
            del self._begun[key]

    def erase(self, *, tenant: bytes | None = None, key: bytes | None = None) -> int:
        """See `Tier.erase`. The master looks at every key that it has.

        The memory of the entries is not overwritten. An entry that another process stores later stays.
        """
        if tenant is None and key is None:
            raise ValueError("tenant and key are None, at least one must be given")
        return self._opened().remove_matching(pattern_of(tenant, key))

    def generation(self, weights: bytes) -> int:
        """See `Tier.generation`. A random number, in an object that is never evicted.

        If its node is lost, there is a new number, and no process finds entries of before.
        """
        client = self._opened()
        key = generation_key(weights)
        number = client.read_number(key)
        if number is None:
            client.write_number(key, secrets.randbits(63), replace=False)  # the first one of several stays
            number = _read_new(client, key, None)
        return number

    def revoke(self, weights: bytes) -> int:
        """See `Tier.revoke`."""
        client = self._opened()
        key = generation_key(weights)
        old = client.read_number(key)
        client.write_number(key, secrets.randbits(63), replace=True)
        return _read_new(client, key, old)

    def metrics(self) -> Mapping[str, int]:
        """Return counts since `open`: ``damaged``, and by name each result code other than success."""
        self._opened()
        return {"damaged": 0, **self._counts}

    def close(self) -> None:
        """Wait until the engine uses no memory any more. Does nothing if the tier is closed."""
        if self._pid != os.getpid() or self._client is None:
            return
        client, self._client, self._pid = self._client, None, 0
        try:
            if self._begun:
                with suppress(Exception):  # claims that are not ended lapse at the master
                    client.abandon(list(self._begun))
        finally:
            self._side.close()
            try:
                client.close()
            except BaseException:
                _kept_for_ever.append(client)
                raise

    def _opened(self) -> MooncakeClient:
        if self._client is None or self._pid != os.getpid():
            state = "closed" if self._client is None else f"open in process {self._pid}, not in this one"
            raise RuntimeError(f"the tier of the Mooncake store {self._address} is {state}")
        return self._client

    __reduce_ex__ = refuse_copies("make a second MooncakeTier")

    @described
    def __repr__(self) -> str:
        return f"{self._address}, {self._protocol}, {'open' if self._pid == os.getpid() else 'closed'}"


def _read_new(client: MooncakeClient, key: str, old: int | None) -> int:
    """Return the number that replaced `old`: a write may return before it can be read, or store nothing."""
    for _ in range(_NUMBER_TRIES):
        number = client.read_number(key)
        if number is not None and number != old:
            return number
        time.sleep(_NUMBER_WAIT_S)
    raise RuntimeError(f"another process writes the object {key}, and has not finished")
