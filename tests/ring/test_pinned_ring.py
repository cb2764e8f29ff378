"""The ring as callers see it: what it copies, refuses, waits for, and what it survives.

On a GPU where there is one, else on the stand-in for the runtime; what must be stopped or made to fail is
always on the stand-in.
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
def test_tensors_of_every_dtype_and_shape_arrive(ring, device, dtype):
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
def test_views_are_read_in_order_and_cast_as_torch_does(ring, device, view):
    src = view(torch.randn(20, 30) * torch.logspace(-9, 6, 30))
    for target in FLOAT_DTYPES:
        dst = poisoned_like(src, device, target)
        ring.copy_to(dst, src).wait()
        assert same_bits(dst.cpu(), src.to(target).contiguous()), target


def test_arrays_arrive_like_tensors(ring, device):
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


def test_nan_and_infinity_survive_a_cast(ring, device):
    src = torch.tensor([float("nan"), float("inf"), float("-inf"), 3.4e38, -0.0, 65520.0, 6e-8])
    for target in (torch.bfloat16, torch.float16):
        dst = poisoned_like(src, device, target)
        ring.copy_to(dst, src).wait()
        assert bool(dst[0].isnan())
        assert same_bits(dst[1:].cpu(), src[1:].to(target))


def test_what_does_not_fit_is_named_and_nothing_is_copied(ring, device):
    dst = torch.full((4,), 7.0, device=device)
    src = torch.zeros(4)
    for error, words, arguments in [
        (ValueError, r"src has shape \(3,\), dst has \(4,\)", (dst, torch.zeros(3))),
        (TypeError, "src is torch.float64, dst is torch.float32: only float32 is cast", (dst, src.double())),
        (TypeError, "src is torch.float16, dst is torch.float32", (dst, src.half())),
        (TypeError, "src must be a CPU tensor or a NumPy array, it is list", (dst, [0.0] * 4)),
        (TypeError, "src is an array of dtype >f4, which torch does not have", (dst, np.zeros(4, ">f4"))),
        (TypeError, "src is an array of dtype <U1", (dst, np.array(["a"] * 4))),
        (ValueError, "src is a torch.strided tensor on meta", (dst, torch.zeros(4, device="meta"))),
        (TypeError, "dst must be a tensor, it is ndarray", (np.zeros(4, np.float32), src)),
        (ValueError, "dst is on meta, the ring copies to", (torch.zeros(4, device="meta"), src)),
        (ValueError, r"dst has strides \(2,\) for shape \(2,\)", (dst[::2], src[:2])),
    ]:
        with pytest.raises(error, match=words):
            ring.copy_to(*arguments)
    with pytest.raises(ValueError, match="timeout_s is -1, it must be finite and at least 0"):
        ring.copy_to(dst, src, timeout_s=-1)
    assert dst.tolist() == [7.0] * 4
    assert ring.stats().copies == 0


def test_bad_options_are_named():
    for error, words, options in [
        (ValueError, "backend is 'gpu', it must be one of 'auto', 'cuda', 'host'", {"backend": "gpu"}),
        (ValueError, "num_threads is 0, it must be at least 1", {"num_threads": 0}),
        (ValueError, f"num_threads is 65, it must be at most {MAX_THREADS}", {"num_threads": 65}),
        (TypeError, "num_threads must be an int, it is 1.5", {"num_threads": 1.5}),
        (ValueError, "piece_bytes is 255, it must be at least 256", {"piece_bytes": 255}),
        (ValueError, "device is cuda:1, a ring of the host backend", {"device": "cuda:1"}),
    ]:
        with pytest.raises(error, match=words):
            PinnedRing(CAPACITY, **{"backend": "host", **options})
    for capacity, words in ((255, "is 255, it must be at least 256"), (1 << 64, f"at most {sys.maxsize}")):
        with pytest.raises(ValueError, match=f"capacity_bytes .*{words}"):
            PinnedRing(capacity, backend="host")
    with PinnedRing(257, backend="host", piece_bytes=sys.maxsize) as ring:
        assert ring.capacity_bytes == ring.stats().capacity_bytes >= 4096


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (4, 3), (8, 6), (16, 12), (64, 12)])
def test_three_quarters_of_the_cores_fill_and_no_more_than_twelve(cores, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert default_num_threads() == threads


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_cuda_backend_is_refused_and_auto_is_the_host():
    with pytest.raises(CudaError, match="torch finds no CUDA device"):
        PinnedRing(CAPACITY, backend="cuda")
    with PinnedRing(CAPACITY) as ring:
        assert (ring.backend, ring.device) == ("host", torch.device("cpu"))


def test_a_full_ring_times_out_and_says_what_is_in_it(host_ring):
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


def test_of_tiny_copies_there_can_be_so_many():
    one = torch.ones(1)
    with PinnedRing(1 << 20, backend="host") as ring, stand_in.paused():
        for _ in range(1024):
            ring.copy_to(torch.zeros(1), one)
        with pytest.raises(TimeoutError, match="1024 slots, the maximum, use 262144 of 1048576"):
            ring.copy_to(torch.zeros(1), one, timeout_s=0)
        stand_in.pause(False)


def test_a_timeout_beyond_the_clock_is_none(host_ring):
    src = torch.arange(CAPACITY // 4, dtype=torch.int32)
    said: list[object] = []

    def wait_for_room() -> None:
        try:
            said.append(host_ring.copy_to(torch.zeros(1), torch.ones(1), timeout_s=1e300))
        except TimeoutError as error:
            said.append(error)

    with host_ring.hold():
        host_ring.copy_to(torch.zeros_like(src), src).synchronize()
        thread = threading.Thread(target=wait_for_room)
        thread.start()
        while host_ring.stats().copies < 2:
            pass
    thread.join()
    said[0].synchronize()


def test_while_it_is_held_no_slot_retires(ring, device):
    src = torch.arange(CAPACITY // 4, dtype=torch.int32)
    dst = torch.zeros_like(src, device=device)
    with ring.hold():
        ring.copy_to(dst, src).synchronize()
        assert ring.stats().used_bytes == CAPACITY
        with pytest.raises(TimeoutError, match="the ring is on hold"):
            ring.copy_to(dst[:1], src[:1], timeout_s=0)
    assert ring.stats().used_bytes == 0
    assert torch.equal(dst.cpu(), src)


def test_a_copy_returns_before_its_source_is_read(host_ring):
    """No call waits for the device: not for a copy with room, nor for asking whether it is done."""
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


def test_a_closed_ring_refuses_and_its_tickets_stay(ring, device):
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


def test_who_waits_for_room_is_told_that_the_ring_was_closed(host_ring):
    src = torch.zeros(CAPACITY, dtype=torch.uint8)
    said = []

    def wait_for_room():
        try:
            host_ring.copy_to(torch.zeros(1), torch.zeros(1))
        except RuntimeError as error:
            said.append(str(error))

    hold = host_ring.hold()
    hold.__enter__()
    host_ring.copy_to(torch.empty_like(src), src).synchronize()
    thread = threading.Thread(target=wait_for_room)
    thread.start()
    while host_ring.stats().copies < 2:
        pass
    host_ring.close()
    thread.join()
    hold.__exit__(None, None, None)
    assert said == ["the ring was closed"]


def test_threads_share_a_ring(ring, device):
    def produce(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            size = int(torch.randint(0, 40_000, (), generator=generator))
            src = torch.randn(size, generator=generator)
            dst = poisoned_like(src, device, torch.bfloat16)
            ring.copy_to(dst, src).wait()
            right.append(same_bits(dst.cpu(), src.bfloat16()))

    right: list[bool] = []
    threads = [threading.Thread(target=produce, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 80
    ring.check_integrity()
    assert ring.stats().used_bytes == 0


def test_a_forked_child_is_refused_and_ends(host_ring):
    """Whatever it asks, and from within a hold; nothing that its threads would have done is waited for."""
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
    *said, last = os.read(read, 5000).decode().splitlines()
    os.close(read)
    assert len(said) == 4
    for words in said:
        assert f"the ring belongs to process {os.getpid()}, this is process {child}" in words
    assert "cudaErrorInitializationError" in last
    ticket.synchronize()
    assert torch.equal(dst, src)


EXIT_WITH_COPIES_IN_FLIGHT = """
import torch
from vitcache import PinnedRing
ring = PinnedRing(1 << 20, backend="host", piece_bytes=1 << 14)
src, dst = torch.ones(1 << 22), torch.zeros(1 << 22)
tickets = [ring.copy_to(dst, src) for _ in range(3)]
print("queued", flush=True)
{last}
"""


# Some of torch's methods, `detach` for one, end the process if the interpreter ends while a daemon thread is
# in them: so these threads call what is ours alone.
DAEMON_THREADS_IN_IT = f"""
import contextlib, sys, threading
sys.path.append({str(SUPPORT)!r})
from rings import native_ring
from vitcache._native import Cast
native, addresses = native_ring(ring), (dst.data_ptr(), src.data_ptr())
def go():
    with contextlib.suppress(RuntimeError):
        while True:
            ticket = native.make_ticket()
            native.copy(ticket, *addresses, 4, (1 << 22,), (4,), Cast.none, None, None)
            ticket.synchronize()
for _ in range(8):
    threading.Thread(target=go, daemon=True).start()
"""


@pytest.mark.parametrize(
    "last",
    [
        "",
        DAEMON_THREADS_IN_IT,
        "raise SystemExit(3)",
        "import os; os.fork() or os._exit(0); os.wait()",
        "import os, sys; os.fork() or sys.exit(0); assert os.wait()[1] == 0",
    ],
)
def test_the_interpreter_ends_with_copies_in_flight(last):
    code = EXIT_WITH_COPIES_IN_FLIGHT.format(last=last)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "queued\n"
    assert done.returncode == (3 if "SystemExit" in last else 0), done.stderr
    assert not done.stderr


def test_nothing_is_left_of_a_ring():
    before = stand_in.count()
    ring = PinnedRing(CAPACITY, backend="host")
    ring.copy_to(torch.zeros(10), torch.ones(10)).synchronize()
    del ring
    gc.collect()
    after = stand_in.count()
    for name in ("streams", "events", "locked_bytes"):
        assert getattr(after, name) == getattr(before, name), name
