"""Forks while threads copy: the children refuse the ring at once, and never hang."""

from __future__ import annotations

import subprocess
import sys

# Each child ends by an alarm, and then the program fails, if a call hangs.
BUSY_FORKS = """
import os, signal, sys, threading, torch
from vitcache import PinnedRing
ring = PinnedRing(1 << 16, num_threads=2, backend="host", piece_bytes=1 << 12)
is_over = threading.Event()

def copy():
    src, dst = torch.ones(30_000), torch.zeros(30_000)
    while not is_over.is_set():
        ring.copy_to(dst, src).wait_source_read()
        ring.stats()

threads = [threading.Thread(target=copy) for _ in range(3)]
for thread in threads:
    thread.start()
parent, faults = os.getpid(), 0
for _ in range(49):
    dst = torch.zeros(10)
    ticket = ring.copy_to(dst, torch.ones(10))
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        messages = set()
        for call in (
            lambda: ring.copy_to(torch.zeros(1), torch.ones(1)),
            ring.stats, ring.check_integrity, lambda: ring.has_free_bytes(1), ring.hold().__enter__,
            ticket.synchronize, ticket.wait, lambda: ticket.done,
            lambda: PinnedRing(1 << 16, num_threads=1, backend="host"),
        ):
            try:
                call()
            except RuntimeError as error:
                messages.add(f"to process {parent}, this is process {os.getpid()}" in str(error))
            else:
                messages.add(call)
        ticket.wait_source_read()
        repr(ring), repr(ticket)
        ring.close()
        del ring, ticket
        os._exit(0 if messages == {True} else 1)
    faults += os.waitpid(child, 0)[1] != 0
is_over.set()
for thread in threads:
    thread.join()
ring.close()
print("faults:", faults)
"""


def test_forked_children_of_a_busy_process_refuse_the_ring_and_end():
    process = subprocess.run([sys.executable, "-c", BUSY_FORKS], capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stdout) == (0, "faults: 0\n"), process.stderr


# The handler of the alarm forks while the main thread waits for a slot of a ring on hold.
FORKS_IN_WAITS = """
import os, signal, sys, torch
from vitcache import PinnedRing
ring = PinnedRing(1 << 14, num_threads=1, backend="host", piece_bytes=1 << 12)
parent = os.getpid()

class Stop(Exception):
    pass

def fork(*_):
    child = os.fork()
    if child:
        print("code:", os.waitpid(child, 0)[1])
        raise Stop
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(30)

signal.signal(signal.SIGALRM, fork)
hold = ring.hold()
hold.__enter__()
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    ring.copy_to(torch.zeros(30_000), torch.ones(30_000))
except RuntimeError as error:
    os._exit(0 if f"to process {parent}, this is process {os.getpid()}" in str(error) else 1)
except Stop:
    assert os.getpid() == parent
hold.__exit__(None, None, None)
ring.close()
print("closed")
"""


def test_child_of_a_fork_inside_of_a_wait_for_a_slot_gets_an_error():
    command = [sys.executable, "-c", FORKS_IN_WAITS]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.stdout == "code: 0\nclosed\n", process.stderr
