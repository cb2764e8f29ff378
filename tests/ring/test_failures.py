"""A ring whose calls of the runtime fail, once or on a lost device: errors, integrity and freed memory."""

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


def test_init_raises_memory_error_if_memory_cannot_be_page_locked():
    stand_in.limit_locked_bytes(CAPACITY - 1)
    with pytest.raises(MemoryError, match=f"cannot page-lock {CAPACITY} bytes"):
        PinnedRing(CAPACITY, backend="host")
    stand_in.reset()
    assert stand_in.count().locked_bytes == 0


@pytest.mark.parametrize("entry", ["cudaMemcpyAsync", "cuStreamWaitValue32_v2", "cudaEventRecord"])
def test_copy_to_with_a_failed_call_fails_only_its_ticket(host_ring, entry):
    src = torch.randn(4 * PIECE // 4)
    stand_in.fail(entry, 2)
    failed = host_ring.copy_to(torch.zeros_like(src), src)
    for call in (failed.wait, failed.synchronize, lambda: failed.done):
        with pytest.raises(CudaError, match=r"cudaErrorInjected \(999\)"):
            call()
    dst = torch.zeros_like(src)
    host_ring.copy_to(dst, src, timeout_s=60).synchronize()
    assert same_bits(dst, src)
    host_ring.check_integrity()


def test_tickets_of_a_lost_device_raise_and_the_ring_closes():
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


def errors_of_three_copies() -> str:
    """Copy three times, also more than the capacity. Return the errors; check the copies without an error."""
    errors = ""
    with PinnedRing(CAPACITY, num_threads=2, backend="host", piece_bytes=PIECE) as ring:
        for size in (100, 3 * CAPACITY, 5000):
            src = torch.randint(0, 256, (size,), dtype=torch.uint8)
            dst = torch.zeros_like(src)
            ticket = ring.copy_to(dst, src)
            try:
                ticket.synchronize()
            except CudaError as error:
                errors += str(error)
                ticket.wait_source_read()
            else:
                assert torch.equal(src, dst)
        ring.check_integrity()
    return errors


@pytest.mark.parametrize("entry", ENTRIES)
def test_any_failed_call_raises_or_bytes_are_equal_and_nothing_leaks(entry):
    """The calls are those from the construction of a ring to its end."""
    for nth in (1, 2, 3, 7, 12):
        stand_in.reset()
        before = stand_in.count()
        stand_in.fail(entry, nth)
        try:
            errors = errors_of_three_copies()
        except CudaError as error:
            errors = str(error)
        assert not errors or entry.removesuffix("_v2") in errors, nth
        gc.collect()
        after = stand_in.count()
        for name in ("streams", "events", "locked_bytes"):
            assert getattr(after, name) == getattr(before, name), (nth, name)


def test_slots_in_flight_do_not_retire_if_one_event_query_fails(host_ring):
    src = torch.arange(CAPACITY // 4, dtype=torch.int32)
    with stand_in.paused():
        host_ring.copy_to(torch.zeros_like(src), src)
        while host_ring.stats().num_unread:
            pass
        stand_in.fail("cudaEventQuery")
        assert host_ring.stats().num_slots == CAPACITY // PIECE
