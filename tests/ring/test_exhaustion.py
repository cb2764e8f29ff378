"""Rings without threads, memory, page-locked memory or descriptors: errors name both numbers."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from vitcache import PinnedRing
from vitcache.testing import stand_in

CAPACITY = 1 << 16


def run(program: str) -> str:
    """Run a program that must end well, and return its output."""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return process.stdout


# The stack of a thread does not fit in the address space.
WITHOUT_THREADS = """
import resource, torch
from vitcache import PinnedRing

def make(num_threads):
    return PinnedRing(1 << 16, num_threads=num_threads, backend="host")

first = make(1)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (60 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    make(64)
except RuntimeError as error:
    print(error)
rings = [first]
try:
    while len(rings) < 100:
        rings.append(make(1))
except RuntimeError as error:
    print(type(error).__name__, len(rings) < 100)
dst = [torch.zeros(1000) for ring in rings]
for ring, each in zip(rings, dst):
    ring.copy_to(each, torch.ones(1000)).synchronize()
print(all(int(each.sum()) == 1000 for each in dst))
for ring in rings:
    ring.close()
make(2).close()
"""


def test_init_without_threads_names_num_threads_and_other_rings_work():
    first, second, third = run(WITHOUT_THREADS).splitlines()
    match = re.fullmatch(r"num_threads is 64, but only (\d+) threads could be started: .+", first)
    assert match is not None, first
    assert int(match[1]) < 64
    assert second in ("RuntimeError True", "CudaError True")
    assert third == "True"


WITHOUT_DESCRIPTORS = """
import os, resource, torch
from vitcache import CudaError, PinnedRing
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
torch.zeros(1), torch.ones(1)  # torch imports its modules

def exhaust():
    used = []
    try:
        while True:
            used.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return used

used = exhaust()
try:
    PinnedRing(1 << 16, num_threads=1, backend="host")
except (CudaError, RuntimeError) as error:
    print(error)
for each in used:
    os.close(each)
PinnedRing(1 << 16, num_threads=1, backend="host").close()
exhaust()
with PinnedRing(1 << 16, num_threads=1, backend="host") as ring:
    dst = torch.zeros(1000)
    ring.copy_to(dst, torch.ones(1000)).synchronize()
    print(int(dst.sum()))
"""


def test_init_without_descriptors_names_the_library_and_needs_none_afterwards():
    first, second = run(WITHOUT_DESCRIPTORS).splitlines()
    assert "Too many open files" in first
    assert second == "1000"


def test_init_beyond_the_memory_of_the_host_names_capacity_bytes_and_both_numbers():
    for capacity in (1 << 50, (1 << 63) - 1):
        with pytest.raises(MemoryError) as raised:
            PinnedRing(capacity, backend="host")
        expected = (
            rf"capacity_bytes is {capacity}: cannot page-lock {capacity} bytes: "
            r"\d+ bytes of host memory are available"
        )
        assert re.fullmatch(expected, str(raised.value)), raised.value


def test_init_beyond_the_limit_of_page_locked_memory_names_capacity_bytes():
    stand_in.reset()
    stand_in.limit_locked_bytes(CAPACITY - 1)
    try:
        with pytest.raises(MemoryError, match=rf"capacity_bytes is {CAPACITY}: .* \d+ bytes of host memory"):
            PinnedRing(CAPACITY, backend="host")
    finally:
        stand_in.reset()
    assert stand_in.count().locked_bytes == 0
    with PinnedRing(CAPACITY, backend="host") as ring:
        dst = torch.zeros(10)
        ring.copy_to(dst, torch.ones(10)).synchronize()
        assert dst.tolist() == [1.0] * 10


# Torch refuses the budget, although the host has more free memory than that.
BEYOND_ADDRESS_SPACE = """
import resource
from vitcache import EmbeddingCache

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (32 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    EmbeddingCache(8, device="cpu", device_bytes=64 << 20)
except MemoryError as error:
    print(error)
"""


def test_init_beyond_the_address_space_names_the_bytes_that_are_left_of_it():
    message = run(BEYOND_ADDRESS_SPACE)
    match = re.match(r"device_bytes: cannot allocate (\d+) bytes .* (\d+) bytes of host memory", message)
    assert match is not None, message
    wanted, available = map(int, match.groups())
    assert available < wanted
