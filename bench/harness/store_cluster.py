"""A Mooncake store on this machine: a master and storage nodes, as processes that are ended with a block."""

from __future__ import annotations

import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitcache.extras import need_of

_START_S = 30.0
_LOOPBACK = "127.0.0.1"


class StoreCluster:
    """A master and its nodes. `store_cluster` makes one.

    Attributes
    ----------
    master, nodes
        The processes.
    port
        The master's port.
    """

    def __init__(self, **master_flags: object) -> None:
        self.port = free_port()
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._flags = [f"--{name}={value}" for name, value in master_flags.items()]
        self.master = self._start_master()

    @property
    def address(self) -> str:
        """Host and port of the master."""
        return f"{_LOOPBACK}:{self.port}"

    def restart_master(self) -> None:
        """Kill the master, and start another one at the same port."""
        _kill(self.master)
        self.master = self._start_master()

    def _start_master(self) -> subprocess.Popen[bytes]:
        flags = [f"--rpc_port={self.port}", f"--rpc_address={_LOOPBACK}", f"--metrics_port={free_port()}"]
        master = _start("mooncake_master", *flags, "--default_kv_lease_ttl=10000", *self._flags)
        _wait_for(master, self.port)
        return master

    def add_node(self, num_bytes: int) -> subprocess.Popen[bytes]:
        """Start a storage node, and wait until it accepts connections."""
        port = free_port()
        node = _start(
            "mooncake_client",
            *(f"--master_server_address={self.address}", "--metadata_server=P2PHANDSHAKE"),
            *(f"--host={_LOOPBACK}", f"--port={port}", "--protocol=tcp"),
            f"--global_segment_size={num_bytes}",
        )
        self.nodes.append(node)
        _wait_for(node, port)
        return node

    def end(self) -> None:
        """Kill all processes."""
        for process in (*self.nodes, self.master):
            _kill(process)


@contextmanager
def store_cluster(
    num_nodes: int = 2, node_bytes: int = 256 << 20, **master_flags: object
) -> Iterator[StoreCluster]:
    """Start a store, and end it with the block.

    Parameters
    ----------
    num_nodes, node_bytes
        Storage nodes, and the memory of each in bytes.
    master_flags
        Flags of `mooncake_master`, such as ``client_ttl=2``.

    Raises
    ------
    RuntimeError
        If Mooncake is not installed, or a process does not start.
    """
    cluster = StoreCluster(**master_flags)
    try:
        for _ in range(num_nodes):
            cluster.add_node(node_bytes)
        yield cluster
    finally:
        cluster.end()


def free_port() -> int:
    """Return a port of the loopback interface that no process uses now."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _start(program: str, *flags: str) -> subprocess.Popen[bytes]:
    path = Path(sysconfig.get_path("scripts"), program)
    if not path.exists():
        raise RuntimeError(f"a store {need_of('mooncake')}")
    return subprocess.Popen(
        [str(path), *flags], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            socket.create_connection((_LOOPBACK, port), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.02)
    _kill(process)
    raise RuntimeError(f"{process.args!r} has not opened port {port} within {_START_S:g} s")


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
