"""A fleet on this machine: a Mooncake master, two storage nodes, and two vitcache processes with one chat.

    python examples/fleet/run.py

In each turn of the chat, one process answers first: it encodes the new image and stores its rows. Then the
other process answers the same turn, and fetches the rows. They take turns in being the first. Two processes
that miss an image at the same moment would both encode it, as a miss never waits for another machine.

The exit code is 0 if each image was encoded once in the fleet, and all logits equal those of the stock model.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from processes import FleetError, Processes, find_program

from vitcache.terminal.table import Table

HOST = "127.0.0.1"
NUM_NODES = 2
NUM_CHATS = 2
NODE_BYTES = "64MB"
LIMIT_S = 120.0  # of the whole run, which takes about 20 s on two cores


def free_ports(count: int) -> list[int]:
    """Return distinct ports of this machine that no process uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def start_store(processes: Processes) -> str:
    """Start the master and the nodes, and wait until the nodes have lent their memory; return the address."""
    rpc_port, metrics_port, *node_ports = free_ports(2 + NUM_NODES)
    master = [f"--rpc_address={HOST}", f"--rpc_port={rpc_port}"]
    master += [f"--metrics_host={HOST}", f"--metrics_port={metrics_port}"]
    processes.start("master", [find_program("mooncake_master"), *master])
    metrics = f"http://{HOST}:{metrics_port}/get_all_segments"
    while read_lines(metrics) is None:
        processes.wait()
    for number, port in enumerate(node_ports, 1):
        node = [f"--host={HOST}", f"--port={port}", f"--master_server_address={HOST}:{rpc_port}"]
        node += ["--metadata_server=P2PHANDSHAKE", "--protocol=tcp", f"--global_segment_size={NODE_BYTES}"]
        processes.start(f"node-{number}", [find_program("mooncake_client"), *node])
    while len(read_lines(metrics) or []) < NUM_NODES:  # one segment per node
        processes.wait()
    return f"{HOST}:{rpc_port}"


def read_lines(url: str) -> list[str] | None:
    """Return the lines of a page of the master's metrics port; None: the master does not answer yet."""
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return str(answer.read(), "utf-8").split()
    except OSError:
        return None


def talk(processes: Processes, master: str, turns: int) -> tuple[int, list[dict[str, Any]]]:
    """Run the chat in each process; return the number of images, and the counts of each process."""
    command = [sys.executable, str(Path(__file__).with_name("chat.py"))]
    command += [f"--master={master}", f"--turns={turns}"]
    chats = [processes.start(f"vitcache-{number + 1}", command) for number in range(NUM_CHATS)]
    [images] = {json.loads(processes.read_line(chat))["images"] for chat in chats}
    counts: list[dict[str, Any]] = [{} for _ in chats]
    for turn in range(1, turns + 1):
        for step in range(NUM_CHATS):
            number = (turn - 1 + step) % NUM_CHATS  # the first one to answer changes with each turn
            chats[number].stdin.write(f"{turn}\n".encode())
            counts[number] = json.loads(processes.read_line(chats[number]))
    return images, counts


def report(images: int, counts: list[dict[str, Any]]) -> bool:
    """Print the table; return whether each image was encoded once in the fleet, with equal logits."""
    heads = ["process", "encodes", "stored", "KB stored", "fetched", "KB fetched", "logits"]
    table = Table(heads, right=range(1, 6))
    names = ("encoded", "stored", "stored_bytes", "fetched", "fetched_bytes")
    fleet = {name: sum(each[name] for each in counts) for name in (*names, "failures")}
    fleet["equal"] = all(each["equal"] for each in counts)
    rows = {f"vitcache-{number}": each for number, each in enumerate(counts, 1)} | {"fleet": fleet}
    for title, each in rows.items():
        cells = [f"{each[name] / 1e3:.0f}" if name.endswith("bytes") else str(each[name]) for name in names]
        table.add(title, *cells, "equal" if each["equal"] else "NOT EQUAL")
    table.print()
    found = fleet["encoded"], fleet["fetched"]
    wanted = images, images * (NUM_CHATS - 1)
    if found != wanted or fleet["failures"] or not fleet["equal"]:
        print(
            f"expected {wanted[0]} encodes, {wanted[1]} fetches, equal logits and no failed call, "
            f"got {found[0]}, {found[1]}, {fleet['equal']} and {fleet['failures']}",
            file=sys.stderr,
        )
        return False
    print(f"{NUM_CHATS} processes showed {images} images to the model; the fleet encoded each image once.")
    return True


def main() -> int:
    """Run the example; return the exit code."""
    parser = argparse.ArgumentParser(description="A fleet on this machine that encodes each image once.")
    parser.add_argument("--turns", type=int, default=6, help="turns of the chat, one new image each")
    turns = parser.parse_args().turns
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the processes, as Ctrl-C does
    try:
        with tempfile.TemporaryDirectory() as logs, Processes(Path(logs), LIMIT_S) as processes:
            master = start_store(processes)
            images, counts = talk(processes, master, turns)
        return 0 if report(images, counts) else 1
    except FleetError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
