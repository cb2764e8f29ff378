"""Calls of the runtime that fail, one at a time and for good: what the ring says, keeps and gives back."""

from __future__ import annotations

import gc

import pytest
import torch
from placement_cases import same_bits

from vitcache import CudaError, PinnedRing
from vitcache.testing import stand_in

CAPACITY, PIECE = 1 << 16, 1 << 13


@pytest.fixture(autouse=True)
def fresh_stand_in():
    stand_in.reset()
    yield
    stand_in.reset()


@pytest.fixture
def ring_options():
    return {"capacity_bytes": CAPACITY, "piece_bytes": PIECE}


def test_memory_that_cannot_be_locked_is_a_memory_error():
    stand_in.limit_locked_bytes(CAPACITY - 1)
    with pytest.raises(MemoryError, match=f"cannot page-lock {CAPACITY} bytes"):
        PinnedRing(CAPACITY, backend="host")
    stand_in.reset()
    assert stand_in.count().locked_bytes == 0


@pytest.mark.parametrize("entry", ["cudaMemcpyAsync", "cuStreamWaitValue32_v2", "cudaEventRecord"])
def test_a_copy_that_cannot_be_queued_poisons_its_ticket_only(host_ring, entry):
    src = torch.randn(4 * PIECE // 4)
    stand_in.fail(entry, 2)
    failed = host_ring.copy_to(torch.zeros_like(src), src)
    for ask in (failed.wait, failed.synchronize, lambda: failed.done):
        with pytest.raises(CudaError, match=r"cudaErrorInjected \(999\)"):
            ask()
    dst = torch.zeros_like(src)
    host_ring.copy_to(dst, src, timeout_s=60).synchronize()
    assert same_bits(dst, src)
    host_ring.check_integrity()


def test_a_device_that_is_lost_is_told_by_each_ticket_and_the_ring_closes():
    ring = PinnedRing(CAPACITY, backend="host", piece_bytes=PIECE)
    stand_in.fail_copy()
    src = torch.randn(100)
    with pytest.raises(CudaError, match=r"cudaErrorIllegalAddress \(700\)"):
        ring.copy_to(torch.zeros(100), src).synchronize()
    with pytest.raises(CudaError, match="700"):
        ring.copy_to(torch.zeros(100), src).wait()
    ring.close()


ENTRIES = [
    "cudaGetDevice",
    "cudaSetDevice",
    "cudaHostAlloc",
    "cudaHostRegister",
    "cudaStreamCreateWithFlags",
    "cudaStreamSynchronize",
    "cudaEventCreateWithFlags",
    "cudaEventRecord",
    "cudaEventQuery",
    "cudaEventSynchronize",
    "cudaMemcpyAsync",
    "cuStreamWaitValue32_v2",
]


def fill_a_ring_twice() -> str:
    """Return what was said, if something was; otherwise the bytes are right."""
    said = ""
    with PinnedRing(CAPACITY, num_threads=2, backend="host", piece_bytes=PIECE) as ring:
        for size in (100, 3 * CAPACITY, 5000):
            src = torch.randint(0, 256, (size,), dtype=torch.uint8)
            dst = torch.zeros_like(src)
            ticket = ring.copy_to(dst, src)
            try:
                ticket.synchronize()
            except CudaError as error:
                said += str(error)
                ticket.wait_source_read()
            else:
                assert torch.equal(src, dst)
        ring.check_integrity()
    return said


@pytest.mark.parametrize("entry", ENTRIES)
def test_whichever_call_fails_there_are_right_bytes_or_an_error_and_nothing_is_left(entry):
    """From the making of a ring to its end."""
    for nth in (1, 2, 3, 7, 12):
        stand_in.reset()
        before = stand_in.count()
        stand_in.fail(entry, nth)
        try:
            said = fill_a_ring_twice()
        except CudaError as error:
            said = str(error)
        assert not said or entry.removesuffix("_v2") in said, nth
        gc.collect()
        after = stand_in.count()
        for name in ("streams", "events", "locked_bytes"):
            assert getattr(after, name) == getattr(before, name), (nth, name)


def test_a_query_that_fails_once_gives_nobody_the_memory_of_a_copy(host_ring):
    src = torch.arange(CAPACITY // 4, dtype=torch.int32)
    with stand_in.paused():
        host_ring.copy_to(torch.zeros_like(src), src)
        while host_ring.stats().num_unread:
            pass
        stand_in.fail("cudaEventQuery")
        assert host_ring.stats().num_slots == CAPACITY // PIECE
