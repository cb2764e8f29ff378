"""`PinnedRing` through its public methods: copies, refusals, waits, forks and interpreter exit.

Tests with the fixture `ring` run on a GPU if there is one, else on the stand-in for the runtime. Tests that
pause streams run on the stand-in.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from placement_cases import FLOAT_DTYPES, same_bits

from vitcache import CudaError, PinnedRing
from vitcache.ring.pinned_ring import MAX_THREADS, default_num_threads
from vitcache.testing import stand_in

CAPACITY, PIECE = 1 << 16, 1 << 13
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(autouse=True)
def fresh_stand_in():
    stand_in.reset()
    yield
    stand_in.reset()


@pytest.fixture
def ring_options():
    return {"capacity_bytes": CAPACITY, "piece_bytes": PIECE}


@pytest.fixture
def ring_backend(device):
    return "cuda" if device == "cuda" else "host"


def poisoned_like(src: torch.Tensor, device: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    dst = torch.empty(src.shape, dtype=dtype or src.dtype, device=device)
    return dst.fill_(float("nan") if dst.is_floating_point() else 77)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool], ids=str
)
def test_copy_to_of_every_dtype_and_shape_writes_equal_values(ring, device, dtype):
    for shape in ((), (0, 3), (1,), (7, 11), (3, PIECE), (1, 5 * CAPACITY // 8)):
        src = (torch.randn(shape) * 50).to(dtype)
        dst = poisoned_like(src, device)
        ticket = ring.copy_to(dst, src)
        ticket.synchronize()
        assert ticket.done
        assert torch.equal(dst.cpu(), src), shape
        ring.check_integrity()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: x[:, 3:17],
        lambda x: x.T,
        lambda x: x[3:4].expand(9, -1),
        lambda x: x.view(5, 4, 3, 10).permute(2, 0, 3, 1),
        lambda x: x[:, ::-1] if isinstance(x, np.ndarray) else x.flip(1),
    ],
    ids=["rows", "columns", "transposed", "expanded", "permuted", "flipped"],
)
def test_copy_to_from_a_view_equals_torchs_copy_and_cast(ring, device, view):
    src = view(torch.randn(20, 30) * torch.logspace(-9, 6, 30))
    for target in FLOAT_DTYPES:
        dst = poisoned_like(src, device, target)
        ring.copy_to(dst, src).wait()
        assert same_bits(dst.cpu(), src.to(target).contiguous()), target


def test_copy_to_from_numpy_arrays_writes_equal_values(ring, device):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    read_only = pixels.copy()
    read_only.flags.writeable = False
    shared = np.frombuffer(memoryview(bytes(pixels.tobytes())), dtype=np.uint8).reshape(6, 8, 3)
    for array in (pixels, pixels[:, ::-1], pixels.transpose(2, 0, 1), read_only, shared):
        dst = torch.full(array.shape, 7, dtype=torch.uint8, device=device)
        ring.copy_to(dst, array).wait()
        assert np.array_equal(dst.cpu().numpy(), array)
    odd = np.zeros(1 + 12, dtype=np.uint8)[1:].view(np.float32)
    odd[:] = [1.5, -2.0, 3.25]
    dst = torch.zeros(3, dtype=torch.bfloat16, device=device)
    ring.copy_to(dst, odd).wait()
    assert dst.tolist() == [1.5, -2.0, 3.25]


def test_copy_to_with_a_cast_keeps_nan_and_infinity(ring, device):
    src = torch.tensor([float("nan"), float("inf"), float("-inf"), 3.4e38, -0.0, 65520.0, 6e-8])
    for target in (torch.bfloat16, torch.float16):
        dst = poisoned_like(src, device, target)
        ring.copy_to(dst, src).wait()
        assert bool(dst[0].isnan())
        assert same_bits(dst[1:].cpu(), src[1:].to(target))


def test_copy_to_with_invalid_arguments_raises_and_copies_nothing(ring, device):
    dst = torch.full((4,), 7.0, device=device)
    src = torch.zeros(4)
    for error, words, arguments in [
        (ValueError, r"src has shape \(3,\), dst has \(4,\)", (dst, torch.zeros(3))),
        (TypeError, "src is torch.float64, dst is torch.float32: only float32 is cast", (dst, src.double())),
        (TypeError, "src is torch.float16, dst is torch.float32", (dst, src.half())),
        (TypeError, "src must be a CPU tensor or a NumPy array, got list", (dst, [0.0] * 4)),
        (TypeError, "src is an array of dtype >f4, which torch does not have", (dst, np.zeros(4, ">f4"))),
        (TypeError, "src is an array of dtype <U1", (dst, np.array(["a"] * 4))),
        (ValueError, "src is a torch.strided tensor on meta", (dst, torch.zeros(4, device="meta"))),
        (TypeError, "dst must be a tensor, got ndarray", (np.zeros(4, np.float32), src)),
        (ValueError, "dst is on meta, the ring copies to", (torch.zeros(4, device="meta"), src)),
        (ValueError, r"dst has strides \(2,\) for shape \(2,\)", (dst[::2], src[:2])),
    ]:
        with pytest.raises(error, match=words):
            ring.copy_to(*arguments)
    with pytest.raises(ValueError, match=r"timeout_s is -1\.0, it must be finite, at least 0"):
        ring.copy_to(dst, src, timeout_s=-1)
    with pytest.raises(TypeError, match="timeout_s must be a number of seconds, got True of type bool"):
        ring.copy_to(dst, src, timeout_s=True)
    assert dst.tolist() == [7.0] * 4
    assert ring.stats().copies == 0


def test_init_checks_the_range_of_every_option():
    for error, words, options in [
        (ValueError, "backend is 'gpu', it must be one of 'auto', 'cuda', 'host'", {"backend": "gpu"}),
        (ValueError, "num_threads is 0, it must be at least 1", {"num_threads": 0}),
        (ValueError, f"num_threads is 65, it must be at most {MAX_THREADS}", {"num_threads": 65}),
        (TypeError, "num_threads must be an int, got 1.5", {"num_threads": 1.5}),
        (TypeError, "num_threads must be an int, got True of type bool", {"num_threads": True}),
        (TypeError, "piece_bytes must be an int or a str .*, got True of type bool", {"piece_bytes": True}),
        (TypeError, "device must be a device or an index, got True of type bool", {"device": True}),
        (ValueError, "piece_bytes is 255, it must be at least 256", {"piece_bytes": 255}),
        (ValueError, "piece_bytes is '1 MiBs', it must be a number and a unit", {"piece_bytes": "1 MiBs"}),
        (ValueError, "device is cuda:1, a ring of the host backend", {"device": "cuda:1"}),
    ]:
        with pytest.raises(error, match=words):
            PinnedRing(CAPACITY, **{"backend": "host", **options})
    for capacity, words in ((255, "is 255, it must be at least 256"), (1 << 64, f"at most {sys.maxsize}")):
        with pytest.raises(ValueError, match=f"capacity_bytes .*{words}"):
            PinnedRing(capacity, backend="host")
    for capacity in (True, 1e6, None):
        with pytest.raises(TypeError, match=f"capacity_bytes must be an int or a str .*, got {capacity}"):
            PinnedRing(capacity, backend="host")
    with PinnedRing("64 KiB", backend="host", piece_bytes="4KiB") as ring:
        assert ring.capacity_bytes == 65536
    with PinnedRing(257, backend="host", piece_bytes=sys.maxsize) as ring:
        assert ring.capacity_bytes == ring.stats().capacity_bytes >= 4096


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (4, 3), (8, 6), (16, 12), (64, 12)])
def test_default_num_threads_is_three_quarters_of_the_cores_and_at_most_12(cores, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert default_num_threads() == threads


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_cuda_is_refused_and_auto_is_host():
    with pytest.raises(CudaError, match="torch finds no CUDA device"):
        PinnedRing(CAPACITY, backend="cuda")
    with PinnedRing(CAPACITY) as ring:
        assert (ring.backend, ring.device) == ("host", torch.device("cpu"))


def test_copy_to_a_full_ring_times_out_and_describes_the_slots(host_ring):
    src = torch.arange(CAPACITY // 4, dtype=torch.int32)
    first, late = torch.zeros_like(src), torch.zeros(3)
    with stand_in.paused():
        ticket = host_ring.copy_to(first, src, timeout_s=0)
        assert not ticket.done
        assert host_ring.stats().used_bytes == CAPACITY
        with pytest.raises(TimeoutError, match=rf"waiting for a slot of 12 bytes: 8 slots use {CAPACITY} of"):
            host_ring.copy_to(late, torch.ones(3), timeout_s=0)
        host_ring.check_integrity()
    host_ring.copy_to(late, torch.ones(3), timeout_s=60).synchronize()
    assert torch.equal(first, src)
    assert late.tolist() == [1.0] * 3


def test_copy_to_with_1024_slots_in_use_times_out():
    src = torch.ones(1)
    with PinnedRing(1 << 20, backend="host") as ring, stand_in.paused():
        for _ in range(1024):
            ring.copy_to(torch.zeros(1), src)
        with pytest.raises(TimeoutError, match="1024 slots, the maximum, use 262144 of 1048576"):
            ring.copy_to(torch.zeros(1), src, timeout_s=0)
        stand_in.pause(False)


def test_copy_to_with_a_timeout_beyond_the_clock_waits_without_limit(host_ring):
    src = torch.arange(CAPACITY // 4, dtype=torch.int32)
    results: list[object] = []

    def wait_for_slot() -> None:
        try:
            results.append(host_ring.copy_to(torch.zeros(1), torch.ones(1), timeout_s=9e9))
        except TimeoutError as error:
            results.append(error)

    with host_ring.hold():
        host_ring.copy_to(torch.zeros_like(src), src).synchronize()
        thread = threading.Thread(target=wait_for_slot)
        thread.start()
        while host_ring.stats().copies < 2:
            pass
    thread.join()
    results[0].synchronize()


def test_ring_on_hold_retires_no_slot(ring, device):
    src = torch.arange(CAPACITY // 4, dtype=torch.int32)
    dst = torch.zeros_like(src, device=device)
    with ring.hold():
        ring.copy_to(dst, src).synchronize()
        assert ring.stats().used_bytes == CAPACITY
        with pytest.raises(TimeoutError, match="the ring is on hold"):
            ring.copy_to(dst[:1], src[:1], timeout_s=0)
    assert ring.stats().used_bytes == 0
    assert torch.equal(dst.cpu(), src)


def test_copy_to_returns_before_the_copy_and_makes_no_synchronizing_call(host_ring):
    """The ring has enough free bytes, so neither `copy_to` nor `done` waits for the device."""
    src = torch.arange(CAPACITY // 8, dtype=torch.int32)
    dst = torch.zeros_like(src)
    before = stand_in.count().synchronizing_calls
    with stand_in.paused():
        ticket = host_ring.copy_to(dst, src)
        assert not ticket.done
        assert int(dst.sum()) == 0
    assert stand_in.count().synchronizing_calls == before
    ticket.synchronize()
    assert torch.equal(dst, src)


def test_closed_ring_raises_and_its_tickets_still_work(ring, device):
    dst = torch.zeros(100, device=device)
    ticket = ring.copy_to(dst, torch.ones(100))
    ring.close()
    ring.close()
    assert ticket.done
    ticket.wait()
    assert bool((dst == 1).all())
    for call in (lambda: ring.copy_to(dst, torch.ones(100)), ring.stats):
        with pytest.raises(RuntimeError, match="the ring was closed"):
            call()


def test_copy_to_that_waits_for_a_slot_raises_when_the_ring_closes(host_ring):
    src = torch.zeros(CAPACITY, dtype=torch.uint8)
    messages = []

    def wait_for_slot():
        try:
            host_ring.copy_to(torch.zeros(1), torch.zeros(1))
        except RuntimeError as error:
            messages.append(str(error))

    hold = host_ring.hold()
    hold.__enter__()
    host_ring.copy_to(torch.empty_like(src), src).synchronize()
    thread = threading.Thread(target=wait_for_slot)
    thread.start()
    while host_ring.stats().copies < 2:
        pass
    host_ring.close()
    thread.join()
    hold.__exit__(None, None, None)
    assert messages == ["the ring was closed"]


def test_copies_of_concurrent_threads_write_equal_values(ring, device):
    def produce(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            size = int(torch.randint(0, 40_000, (), generator=generator))
            src = torch.randn(size, generator=generator)
            dst = poisoned_like(src, device, torch.bfloat16)
            ring.copy_to(dst, src).wait()
            equal.append(same_bits(dst.cpu(), src.bfloat16()))

    equal: list[bool] = []
    threads = [threading.Thread(target=produce, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 80
    ring.check_integrity()
    assert ring.stats().used_bytes == 0


def test_ring_in_a_forked_child_raises_and_the_child_exits(host_ring):
    """Every method raises, also inside of a hold. The child does not wait for its parent's worker threads."""
    src, dst = torch.ones(4 * PIECE, dtype=torch.uint8), torch.zeros(4 * PIECE, dtype=torch.uint8)
    read, write = os.pipe()
    with stand_in.paused():
        ticket = host_ring.copy_to(dst, src)
        child = 0
        with host_ring.hold():
            child = os.fork()
            if child == 0:
                for call in (
                    lambda: host_ring.copy_to(torch.zeros(1), torch.zeros(1)),
                    host_ring.stats,
                    host_ring.check_integrity,
                    host_ring.hold().__enter__,
                    ticket.synchronize,
                ):
                    try:
                        call()
                    except RuntimeError as error:
                        os.write(write, f"{error}\n".encode())
                ticket.wait_source_read()
        if child == 0:
            host_ring.close()
            os._exit(0)
    os.close(write)
    assert os.waitpid(child, 0)[1] == 0
    *ring_errors, ticket_error = os.read(read, 5000).decode().splitlines()
    os.close(read)
    assert len(ring_errors) == 4
    for message in ring_errors:
        assert f"the ring belongs to process {os.getpid()}, this is process {child}" in message
    assert f"the copy belongs to process {os.getpid()}, this is process {child}" in ticket_error
    ticket.synchronize()
    assert torch.equal(dst, src)


EXIT_WITH_COPIES_IN_FLIGHT = """
import torch
from vitcache import PinnedRing
ring = PinnedRing(1 << 20, backend="host", piece_bytes=1 << 14)
src, dst = torch.ones(1 << 22), torch.zeros(1 << 22)
tickets = [ring.copy_to(dst, src) for _ in range(3)]
print("queued", flush=True)
{last_lines}
"""


# Some methods of torch, for example `detach`, abort the process if the interpreter ends while a daemon thread
# runs them. So these threads call only the native module.
COPYING_DAEMON_THREADS = f"""
import contextlib, sys, threading
sys.path.append({str(SUPPORT)!r})
from rings import native_ring
from vitcache._native import Cast
native, address = native_ring(ring), src.data_ptr()
def copy_repeatedly():
    with contextlib.suppress(RuntimeError):
        while True:
            ticket = native.copy(dst, src, address, 4, (1 << 22,), (4,), Cast.none, None, None, src, dst)
            ticket.synchronize()
for _ in range(8):
    threading.Thread(target=copy_repeatedly, daemon=True).start()
"""


@pytest.mark.parametrize(
    "last_lines",
    [
        "",
        COPYING_DAEMON_THREADS,
        "raise SystemExit(3)",
        "import os; os.fork() or os._exit(0); os.wait()",
        "import os, sys; os.fork() or sys.exit(0); assert os.wait()[1] == 0",
    ],
)
def test_interpreter_exits_cleanly_with_copies_in_flight(last_lines):
    code = EXIT_WITH_COPIES_IN_FLIGHT.format(last_lines=last_lines)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert process.stdout == "queued\n"
    assert process.returncode == (3 if "SystemExit" in last_lines else 0), process.stderr
    assert not process.stderr


def test_collected_ring_frees_streams_events_and_memory():
    before = stand_in.count()
    ring = PinnedRing(CAPACITY, backend="host")
    ring.copy_to(torch.zeros(10), torch.ones(10)).synchronize()
    del ring
    gc.collect()
    after = stand_in.count()
    for name in ("streams", "events", "locked_bytes"):
        assert getattr(after, name) == getattr(before, name), name
