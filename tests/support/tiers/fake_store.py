"""`FakeStore`: a Mooncake store in memory that fails, writes late, hangs or loses objects for a test."""

from __future__ import annotations

import ctypes
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tiers.fake_client import DEAD, FakeClient, ReplicateConfig, StoredBytes
from tiers.planted_tier import Pause
from vitcache.tiers import mooncake_client, mooncake_tier

Fault = int | BaseException | Callable[[], None]


class FakeStore:
    """A store, and the module `mooncake.store` for it. Tests plant faults from any thread, before the call.

    `mistakes` has the calls that would end the process in the real engine, or fail with RDMA only, and they
    fail the test: from a second thread, after `close`, beside another call, with memory that is not
    registered.

    Attributes
    ----------
    objects
        The objects by key, in the order of their writes.
    calls
        Number of calls by method, of all clients.
    asked
        The method and the keys of each call, in order.
    clients
        All clients that were made.
    """

    ReplicateConfig = ReplicateConfig

    def __init__(self) -> None:
        self.objects: dict[str, StoredBytes] = {}
        self.calls: Counter[str] = Counter()
        self.asked: list[tuple[str, list[str]]] = []
        self.clients: list[FakeClient] = []
        self.mistakes: list[str] = []
        self._faults: list[tuple[str, int, str, Fault]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def MooncakeDistributedStore(self) -> FakeClient:
        client = FakeClient(self)
        self.clients.append(client)
        return client

    def plant(self, call: str, fault: Fault, key: str = "", nth: int = 1) -> None:
        """Let the nth call of a method from now on fail.

        A fault is a result code, of all keys or of the keys that contain `key`; an exception to raise; or a
        function that is called before the call does anything.
        """
        self._faults.append((call, self.calls[call] + nth, key, fault))

    def pause(self, call: str, nth: int = 1) -> Pause:
        """Block the nth call of a method from now on."""
        pause = Pause()
        self.plant(call, pause.wait, nth=nth)
        return pause

    def take_faults(self, call: str) -> list[tuple[str, int]]:
        """Count a call, run the faults planted for it, and return the planted codes with their keys."""
        self.calls[call] += 1
        number = self.calls[call]
        faults = [each for each in self._faults if each[:2] == (call, number)]
        self._faults = [each for each in self._faults if each not in faults]
        codes = []
        for _, _, key, fault in faults:
            if isinstance(fault, int):
                codes.append((key, fault))
            elif isinstance(fault, BaseException):
                raise fault
            else:
                fault()
        return codes

    def flip(self, key: str, at: int) -> None:
        """Change a byte of an object in the memory of its node."""
        self.objects[key].data[at] ^= 0x40

    def begin_and_die(self, key: str) -> None:
        """Let another client begin to write an object, and end in the middle."""
        self.objects[key] = StoredBytes(b"", ReplicateConfig(), DEAD)

    def lapse(self) -> None:
        """Let the master drop all objects that are not complete: their time is over."""
        for key in [key for key, stored in self.objects.items() if stored.writer is not None]:
            del self.objects[key]

    def write_late(self, value: int = 0xEE) -> int:
        """Write the memory of reads that failed, as an engine may until `close`. Return its bytes."""
        late = [piece for client in self.clients for piece in client.late]
        for address, size in late:
            ctypes.memset(address, value, size)
        return sum(size for _, size in late)

    def accept(self) -> None:
        """Take the connections that were made to find out whether the master answers."""
        try:
            while True:
                self._listener.accept()[0].close()
        except BlockingIOError:
            return

    def stop(self) -> None:
        """Let the master refuse new connections."""
        self._listener.close()

    def start(self) -> None:
        """Let the master accept connections again, at the same address."""
        self._listener = socket.create_server(("127.0.0.1", int(self.address.rsplit(":")[-1])))
        self._listener.setblocking(False)


@contextmanager
def fake_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStore]:
    """Put a fake in place of the engine. Fails at the end if the engine would have crashed."""
    store = FakeStore()
    monkeypatch.setattr(mooncake_client, "load_engine", lambda: store)
    monkeypatch.setattr(mooncake_tier, "load_engine", lambda: store)
    monkeypatch.setattr(mooncake_tier, "_NUMBER_WAIT_S", 0.0)
    try:
        yield store
    finally:
        store.stop()
    assert store.mistakes == []
