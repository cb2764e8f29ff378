"""`FakeClient`: a client of a `FakeStore`, with the calls of the engine that `MooncakeClient` makes."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tiers.fake_store import FakeStore

DEAD = "a writer that has died"
FAILED, ABSENT, BEING_WRITTEN, EXISTS, WRONG_SIZE, NOT_MINE = -800, -704, -703, -705, -600, -601
# The real engine writes nothing after these codes of a read.
SAFE = frozenset({WRONG_SIZE, BEING_WRITTEN, ABSENT, -707, -801})


class ReplicateConfig:
    """How an object is kept."""

    replica_num = 1
    with_hard_pin = False


class StoredBytes:
    """An object. `writer`: the client that writes it; None: it is complete; `DEAD`: it is never ended."""

    def __init__(self, data: bytes, config: ReplicateConfig, writer: object = None) -> None:
        self.data = bytearray(data)
        self.config = config
        self.writer = writer


class FakeClient:
    """A client of a `FakeStore`, with the calls that `MooncakeClient` makes.

    Attributes
    ----------
    late
        Addresses and sizes of memory that the engine may still write.
    """

    def __init__(self, store: FakeStore) -> None:
        self.late: list[tuple[int, int]] = []
        self.is_closed = False
        self._store = store
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self._running = ""
        self._memory: list[tuple[int, int]] = []

    @contextmanager
    def _call(self, name: str, keys: Sequence[str] = ()) -> Iterator[Callable[[str], int | None]]:
        """A call. Yields a function that returns the planted code of a key."""
        for is_wrong, mistake in (
            (self.is_closed, "after close"),
            (threading.get_ident() != self._thread, "from a second thread"),
            (bool(self._running), f"during {self._running}"),
            (os.getpid() != self._pid, "in a forked child"),
        ):
            if is_wrong:
                self._mistake(f"{name} was called {mistake}")
        self._running = name
        self._store.asked.append((name, list(keys)))
        try:
            codes = self._store.take_faults(name)
            yield lambda key: next((code for part, code in codes if part in key), None)
        finally:
            self._running = ""

    def _mistake(self, text: str) -> None:
        self._store.mistakes.append(text)
        raise AssertionError(text)

    def _check_memory(self, addresses: Sequence[int], sizes: Sequence[int]) -> None:
        for address, size in zip(addresses, sizes, strict=True):
            if size == 0:
                self._mistake("a transfer of 0 bytes")
            if not any(first <= address and address + size <= last for first, last in self._memory):
                self._mistake(f"{size} bytes at {address:#x} are not registered")

    def setup(self, *arguments: object) -> int:
        self._store.accept()
        with self._call("setup") as planted:
            return planted("") or 0

    def register_buffer(self, address: int, size: int) -> int:
        with self._call("register_buffer") as planted:
            code = planted("")
            if any(address < last and first < address + size for first, last in self._memory):
                return WRONG_SIZE  # the engine refuses memory that overlaps
            if code is None:
                self._memory.append((address, address + size))
            return code or 0

    def batch_is_exist(self, keys: list[str]) -> list[int]:
        with self._call("exist", keys) as planted:
            return [_first(planted(key), int(self._is_complete(key))) for key in keys]

    def _is_complete(self, key: str) -> bool:
        stored = self._store.objects.get(key)
        return stored is not None and stored.writer is None

    def batch_get_into_multi_buffers(
        self, keys: list[str], addresses: list[list[int]], sizes: list[list[int]]
    ) -> list[int]:
        with self._call("get", keys) as planted:
            return [self._get(*each, planted(each[0])) for each in zip(keys, addresses, sizes, strict=True)]

    def batch_get_into(self, keys: list[str], addresses: list[int], sizes: list[int]) -> list[int]:
        with self._call("get_one", keys) as planted:
            return [
                self._get(key, [address], [size], planted(key))
                for key, address, size in zip(keys, addresses, sizes, strict=True)
            ]

    def _get(self, key: str, addresses: list[int], sizes: list[int], code: int | None) -> int:
        self._check_memory(addresses, sizes)
        stored = self._store.objects.get(key)
        if code is None and stored is None:
            code = ABSENT
        elif code is None and stored is not None and stored.writer is not None:
            code = BEING_WRITTEN
        elif code is None and stored is not None and sum(sizes) != len(stored.data):
            code = FAILED if sum(sizes) > len(stored.data) else WRONG_SIZE
        if code is not None and code != -801:
            if code not in SAFE:
                self.late += zip(addresses, sizes, strict=True)
            return code
        at = 0
        for address, size in zip(addresses, sizes, strict=True):
            piece = bytes(stored.data[at : at + size]) if stored else b""
            ctypes.memmove(address, piece, len(piece))
            at += size
        return at if code is None else code

    def batch_put_from_multi_buffers(
        self, keys: list[str], addresses: list[list[int]], sizes: list[list[int]], config: ReplicateConfig
    ) -> list[int]:
        with self._call("put", keys) as planted:
            return [
                self._put(*each, config, planted(each[0]))
                for each in zip(keys, addresses, sizes, strict=True)
            ]

    def batch_put_from(
        self, keys: list[str], addresses: list[int], sizes: list[int], config: ReplicateConfig
    ) -> list[int]:
        with self._call("put_one", keys) as planted:
            return [
                self._put(key, [address], [size], config, planted(key))
                for key, address, size in zip(keys, addresses, sizes, strict=True)
            ]

    def batch_upsert_from(
        self, keys: list[str], addresses: list[int], sizes: list[int], config: ReplicateConfig
    ) -> list[int]:
        with self._call("upsert", keys) as planted:
            return [
                self._put(key, [address], [size], config, planted(key), replaces=True)
                for key, address, size in zip(keys, addresses, sizes, strict=True)
            ]

    def _put(
        self,
        key: str,
        addresses: list[int],
        sizes: list[int],
        config: ReplicateConfig,
        code: int | None,
        replaces: bool = False,
    ) -> int:
        self._check_memory(addresses, sizes)
        stored = self._store.objects.get(key)
        if code is None and (stored is None or (replaces and stored.writer is None)):
            self._store.objects[key] = StoredBytes(_read(addresses, sizes), config)
        return code or 0  # 0 also where another client writes the object, or has died

    def batch_put_session_start(
        self, keys: list[str], sizes: list[int], config: ReplicateConfig
    ) -> list[int]:
        with self._call("start", keys) as planted:
            return [
                self._start(key, size, config, planted(key)) for key, size in zip(keys, sizes, strict=True)
            ]

    def _start(self, key: str, size: int, config: ReplicateConfig, code: int | None) -> int:
        if code is not None:
            return code
        if key in self._store.objects:
            return EXISTS
        self._store.objects[key] = StoredBytes(bytes(size), config, self)
        return 0

    def batch_put_from_multi_buffer_ranges(
        self, keys: list[str], addresses: list[list[int]], sizes: list[list[int]], offsets: list[list[int]]
    ) -> list[int]:
        with self._call("ranges", keys) as planted:
            return [
                self._put_range(*each, planted(each[0]))
                for each in zip(keys, addresses, sizes, offsets, strict=True)
            ]

    def _put_range(
        self, key: str, addresses: list[int], sizes: list[int], offsets: list[int], code: int | None
    ) -> int:
        self._check_memory(addresses, sizes)
        if code is not None:
            return code
        stored = self._store.objects.get(key)
        if stored is None or stored.writer is not self:
            return NOT_MINE
        for address, size, at in zip(addresses, sizes, offsets, strict=True):
            stored.data[at : at + size] = ctypes.string_at(address, size)
        return sum(sizes)

    def batch_put_session_end(self, keys: list[str]) -> list[int]:
        with self._call("end", keys) as planted:
            return [self._end(key, planted(key)) for key in keys]

    def _end(self, key: str, code: int | None) -> int:
        if code is not None:
            return code
        stored = self._store.objects.get(key)
        if stored is None or stored.writer is not self:
            return NOT_MINE
        stored.writer = None
        return 0

    def batch_put_session_revoke(self, keys: list[str]) -> list[int]:
        with self._call("revoke", keys):
            for key in keys:
                stored = self._store.objects.get(key)
                if stored is not None and stored.writer is self:
                    del self._store.objects[key]
            return [0] * len(keys)

    def batch_remove(self, keys: list[str], force: bool) -> list[int]:
        with self._call("remove", keys) as planted:
            return [self._remove(key, planted(key)) for key in keys]

    def _remove(self, key: str, code: int | None) -> int:
        if code is not None:
            return code
        if not self._is_complete(key):
            return ABSENT
        del self._store.objects[key]
        return 0

    def remove_by_regex(self, pattern: str, force: bool) -> int:
        with self._call("remove_by_regex") as planted:
            code = planted("")
            if code is not None:
                return code
            found = [key for key in self._store.objects if re.search(pattern, key) and self._is_complete(key)]
            for key in found:
                del self._store.objects[key]
            return len(found)

    def close(self) -> int:
        """The barrier: later, `write_late` writes nothing."""
        with self._call("close"):
            self.late.clear()
            self._memory.clear()
            self.is_closed = True
            return 0


def _first(planted: int | None, code: int) -> int:
    return code if planted is None else planted


def _read(addresses: Sequence[int], sizes: Sequence[int]) -> bytes:
    return b"".join(map(ctypes.string_at, addresses, sizes))
