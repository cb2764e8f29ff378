"""`MooncakeClient`: one connection to a Mooncake store, with the meaning of its result codes."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from vitcache.extras import need_of
from vitcache.tiers.mooncake_objects import CallMemory, StoredObject, address_of, new_memory

# Seconds within which the master must accept a connection. `setup` would try it for ever.
_CONNECT_S = 0.5
# The engine reads these when it starts. Without them, a call waits 30 s for a master and 60 s for a node that
# is silent; the two of TCP work only together.
_TIMEOUTS = {
    "MC_RPC_TIMEOUT_MS": "500",
    "MC_TCP_STATUS_TIMEOUT_SEC": "1",
    "MC_TCP_PROGRESS_TIMEOUT_SEC": "2",
}
_RDMA_DEVICES = Path("/sys/class/infiniband")  # without one, the engine would use TCP and say nothing
_LOCAL_BUFFER_BYTES = 16 << 20  # of the engine; only calls that this module does not make use it

NO_SPACE, WRONG_SIZE, NOT_MINE, BEING_WRITTEN, ABSENT, EXISTS = -200, -600, -601, -703, -704, -705
LEASE_OVER, WRONG_CHECKSUM, OVER_QUOTA = -707, -801, -1700
# After these codes of a read, nothing writes the caller's memory any more: it was refused, or is complete.
MISSED = frozenset({WRONG_SIZE, BEING_WRITTEN, ABSENT, LEASE_OVER})
# After these codes of a write, nothing reads the caller's memory any more, and the object is not stored.
REFUSED = frozenset({NO_SPACE, OVER_QUOTA, NOT_MINE, BEING_WRITTEN, ABSENT})
_MEANINGS = {
    NO_SPACE: "no space",
    WRONG_SIZE: "a wrong argument or size",
    -706: "the object is leased",
    -800: "the transfer failed",
    -900: "no master answers",
    -901: "the master's answer is late",
}


_made_in: list[int] = []  # the process that has made a client; a forked child has that of its parent
_stores: weakref.WeakSet[Any] = weakref.WeakSet()  # of this process, which are not closed


class MooncakeError(RuntimeError):
    """A call of the store failed. The message has the call, the code and its meaning."""


def load_engine() -> Any:
    """Return the module `mooncake.store`.

    Raises
    ------
    ImportError
        If it is not installed, or a library that it needs is missing.
    """
    for name, value in _TIMEOUTS.items():
        os.environ.setdefault(name, value)
    try:
        import mooncake.store as engine
        import xxhash  # noqa: F401  # of the checksums
    except ModuleNotFoundError as error:
        raise ImportError(f"MooncakeTier {need_of(error.name or 'mooncake')}", name=error.name) from error
    except ImportError as error:
        hint = " (apt-get install libibverbs1)" if "libibverbs" in str(error) else ""
        raise ImportError(f"MooncakeTier cannot load Mooncake's client: {error}{hint}") from error
    return engine


class MooncakeClient:
    """A client that lends no memory to the store. One thread at a time calls its methods.

    A call after `close`, or during it, would end the process with a segmentation fault: the owner calls both
    from one thread. All calls block, without the GIL.

    Parameters
    ----------
    master
        Host and port of the master.
    local_host
        The address of this machine, or None for the one from which it reaches the master.
    replicas
        Number of copies of each object.

    Raises
    ------
    ConnectionError
        If the master does not answer, or refuses the client; if `protocol` is ``"rdma"``, and this machine
        has no device for it.
    RuntimeError
        If a parent of this process had made a client before it forked.
    """

    def __init__(
        self, master: tuple[str, int], local_host: str | None, protocol: str, devices: str, replicas: int
    ) -> None:
        if _made_in and _made_in[0] != os.getpid():
            raise RuntimeError(
                f"process {_made_in[0]} had used a Mooncake store when it forked this one, in which the "
                "engine would hang, and could end that process: start children by spawn, or before it"
            )
        engine = load_engine()
        host, port = master
        if protocol == "rdma" and not any(_RDMA_DEVICES.glob("*")):
            raise ConnectionError(f"protocol is 'rdma', but this machine has no device in {_RDMA_DEVICES}")
        try:
            with socket.create_connection(master, timeout=_CONNECT_S) as connection:
                local_host = local_host or connection.getsockname()[0]
        except OSError as error:
            raise ConnectionError(f"no Mooncake master answers at {host}:{port}: {error}") from error
        _made_in[:] = [os.getpid()]
        self._store = engine.MooncakeDistributedStore()
        _stores.add(self._store)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        code = self._store.setup(
            local_host, "P2PHANDSHAKE", 0, _LOCAL_BUFFER_BYTES, protocol, devices, address
        )
        if code:
            self._store.close()
            raise ConnectionError(f"the Mooncake master at {address} refuses this client: {describe(code)}")
        self._config = engine.ReplicateConfig()
        self._config.replica_num = replicas
        self._pinned = engine.ReplicateConfig()
        self._pinned.replica_num = replicas
        self._pinned.with_hard_pin = True
        self._blocks: list[np.ndarray] = []
        self._free: list[np.ndarray] = []  # of these blocks, those that no call may still write or read
        self.memory = CallMemory(self.register)
        self._left: list[CallMemory] = []

    def leave_memory(self) -> None:
        """Use other memory from now on, because the engine may still write that of the last call."""
        self._left.append(self.memory)
        self.memory = CallMemory(self.register)

    def register(self, memory: np.ndarray) -> None:
        """Register memory for transfers. It stays registered, and must stay valid, until `close`."""
        if memory.nbytes:
            code = self._store.register_buffer(address_of(memory), memory.nbytes)
            if code:
                fail(f"register {memory.nbytes} bytes", code)

    def exist(self, keys: Sequence[str]) -> list[bool]:
        """Whether objects can be read. The store keeps those for the time of its leases."""
        codes = self._store.batch_is_exist(list(keys)) if keys else []
        for code in codes:
            if code < 0:
                fail("look up objects", code)
        return [code == 1 for code in codes]

    def get(self, objects: Sequence[StoredObject]) -> list[int]:
        """Read objects, and return a code for each: the number of its bytes, or negative."""
        codes: list[int] = self._store.batch_get_into_multi_buffers(
            [each.key for each in objects],
            [each.addresses for each in objects],
            [each.sizes for each in objects],
        )
        return codes

    def put(self, objects: Sequence[StoredObject]) -> list[int]:
        """Write objects, and return a code for each. 0 does not mean that the object can be read."""
        codes: list[int] = self._store.batch_put_from_multi_buffers(
            [each.key for each in objects],
            [each.addresses for each in objects],
            [each.sizes for each in objects],
            self._config,
        )
        return codes

    def begin_put(self, keys: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Begin to write objects, and return a code for each: 0 if no other client writes or has it."""
        codes: list[int] = self._store.batch_put_session_start(list(keys), list(sizes), self._config)
        return codes

    def put_begun(self, objects: Sequence[StoredObject]) -> list[int]:
        """Write objects that were begun, and end them. Returns a code for each: 0 if it can be read."""
        keys = [each.key for each in objects]
        offsets = [[sum(each.sizes[:at]) for at in range(len(each.sizes))] for each in objects]
        written = self._store.batch_put_from_multi_buffer_ranges(
            keys, [each.addresses for each in objects], [each.sizes for each in objects], offsets
        )
        codes: list[int] = []
        for each, code in zip(objects, written, strict=True):
            if code == each.num_bytes:
                (code,) = self._store.batch_put_session_end([each.key])
            elif code >= 0:
                code = WRONG_SIZE  # it has written other bytes than those
            codes.append(code)
        return codes

    def abandon(self, keys: Sequence[str]) -> None:
        """Let other clients write objects that this one has begun."""
        self._store.batch_put_session_revoke(list(keys))

    def remove(self, keys: Sequence[str]) -> None:
        """Remove objects, also leased ones."""
        for code in self._store.batch_remove(list(keys), True):
            if code not in (0, ABSENT):
                fail("remove an object", code)

    def remove_matching(self, pattern: str) -> int:
        """Remove the objects whose keys match, also leased ones. Returns their number."""
        code: int = self._store.remove_by_regex(pattern, True)
        return code if code >= 0 else fail("remove objects", code)

    def read_number(self, key: str) -> int | None:
        """Return the number in an object; None if there is no object, or it is not complete yet."""
        block = self._new_block()
        (code,) = self._store.batch_get_into([key], [address_of(block)], [8])
        if code not in (8, ABSENT, BEING_WRITTEN):
            fail("read a number", code)
        self._free.append(block)
        return int.from_bytes(block[:8].tobytes(), "little") if code == 8 else None

    def write_number(self, key: str, number: int, *, replace: bool) -> None:
        """Write a number of 63 bits into an object that is never evicted.

        Without `replace`, an object that is there stays.
        """
        block = self._new_block()
        block[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        call = self._store.batch_upsert_from if replace else self._store.batch_put_from
        (code,) = call([key], [address_of(block)], [8], self._pinned)
        if code not in (0, EXISTS):
            fail("write a number", code)
        self._free.append(block)

    def _new_block(self) -> np.ndarray:
        """Memory that no other call uses, as a call that has failed may still write it."""
        if self._free:
            return self._free.pop()
        block = new_memory(mmap.PAGESIZE)
        self._blocks.append(block)
        self.register(block)
        return block

    def close(self) -> None:
        """Wait until the engine uses no memory any more."""
        self._store.close()
        _stores.discard(self._store)


def _keep_in_child() -> None:
    """Let a forked child never free the parent's stores, not even at its exit: it would crash."""
    for store in tuple(_stores):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(store))
    _stores.clear()


os.register_at_fork(after_in_child=_keep_in_child)


def fail(call: str, code: int) -> NoReturn:
    """Raise MooncakeError."""
    raise MooncakeError(f"Mooncake could not {call}: {describe(code)}")


def describe(code: int) -> str:
    """Return a code with its meaning."""
    return f"code {code} ({_MEANINGS[code]})" if code in _MEANINGS else f"code {code}"
