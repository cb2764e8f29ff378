"""The ring with the streams and the allocator of a GPU. A dry run uses the stand-in for the CUDA runtime."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from vitcache import PinnedRing
from vitcache.adapters.call_item import CallItem
from vitcache.adapters.splits.call_parts import ItemCall
from vitcache.pipeline.feature_mover import FeatureMover


@pytest.fixture
def ring_options(gpu):
    size = gpu.size(64 << 20, 1 << 20)
    return {"capacity_bytes": size, "piece_bytes": size // 16}


@pytest.fixture
def ring_backend(gpu):
    return "host" if gpu.dry else "cuda"


def elements(gpu, ring, share: float) -> int:
    return int(ring.capacity_bytes * share) // 4


def test_ticket_wait_behind_a_slow_stream_does_not_block_the_host(gpu, ring):
    """The copy is queued immediately, and work that is queued after `Ticket.wait` reads the copied bytes."""
    src = torch.randn(elements(gpu, ring, 0.75))
    dst = torch.zeros_like(src, device=gpu.device)
    ring.copy_to(dst, src).synchronize()
    doubled = dst * 2  # loads the kernel, and torch's allocator keeps the memory
    del doubled
    dst.zero_()
    gpu.synchronize()
    gpu.slow(200)
    ticket = ring.copy_to(dst, src)
    ticket.wait()
    doubled = dst * 2
    assert gpu.is_behind(gpu.current_stream())
    assert gpu.dry or not ticket.done
    gpu.synchronize()
    assert ticket.done
    assert torch.equal(doubled.cpu(), src * 2)


def test_ticket_wait_on_several_streams_orders_each_behind_the_copy(gpu, ring):
    src = torch.randn(elements(gpu, ring, 2.5))
    dst = torch.zeros_like(src, device=gpu.device)
    gpu.synchronize()
    ticket = ring.copy_to(dst, src)
    sums = []
    for _ in range(3):
        with gpu.stream() as stream:
            ticket.wait(None if gpu.dry else stream)
            sums.append((dst + 1, stream))
    gpu.synchronize()
    for total, _ in sums:
        assert torch.equal(total.cpu(), src + 1)


def test_destination_dropped_during_the_copy_is_not_reused_before_it_is_complete(gpu, ring):
    """The next tensor in that memory keeps its own values."""
    src = torch.ones(elements(gpu, ring, 0.5))
    for _ in range(gpu.size(20, 3)):
        dst = torch.empty_like(src, device=gpu.device)
        gpu.slow(2)
        ring.copy_to(dst, src)
        del dst
        other = torch.zeros_like(src, device=gpu.device)
        gpu.synchronize()
        assert bool((other == 0).all())


def test_destination_may_be_freed_after_the_ring_is_closed(gpu):
    """torch's allocator then records an event on the ring's stream, which the next ring reuses."""
    streams = set()
    for _ in range(3):
        backend = "host" if gpu.dry else "cuda"
        with PinnedRing(1 << 20, backend=backend) as ring:
            dst = torch.zeros(1 << 18, device=gpu.device)
            ring.copy_to(dst, torch.ones(1 << 18)).wait()
            streams.add(None if gpu.dry else ring.stream.cuda_stream)
        assert bool((dst == 1).all())
        del dst
        gpu.synchronize()
    assert len(streams) == 1


def test_graph_capture_beside_copies_of_another_thread_captures_none_of_them(gpu, ring):
    """The ring's polls do not break the capture. A copy after work of a captured stream raises."""
    src = torch.randn(elements(gpu, ring, 0.9))
    dst = torch.zeros_like(src, device=gpu.device)
    values, stop, failed = torch.zeros(10, device=gpu.device), threading.Event(), []

    def copy_until_stopped() -> None:
        try:
            while not stop.is_set():
                ring.copy_to(dst, src, after=beside).synchronize()
        except Exception as error:
            failed.append(error)

    beside = None if gpu.dry else torch.cuda.Stream()
    ring.copy_to(dst, src).synchronize()
    thread = threading.Thread(target=copy_until_stopped)
    thread.start()
    refused = []

    def body() -> None:
        values.add_(1)
        if not gpu.dry and torch.cuda.is_current_stream_capturing():
            with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
                ring.copy_to(dst, src)
            refused.append(True)

    try:
        replay = gpu.graph(body)
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert bool(refused) is not gpu.dry
    before = float(values[0])
    replay()
    gpu.synchronize()
    assert float(values[0]) == before + 1
    ring.copy_to(dst, src).wait()
    assert torch.equal(dst.cpu(), src)


def test_first_launch_of_a_kernel_during_a_copy_does_not_hang(gpu, ring):
    """A call that synchronizes stalls until the ring's threads have filled the slot."""
    src = torch.randn(elements(gpu, ring, 3.0))
    dst = torch.empty_like(src, device=gpu.device)
    ticket = ring.copy_to(dst, src)
    fresh = torch.erfinv(torch.rand(1000, device=gpu.device)).sum().item()
    ticket.wait()
    assert fresh == fresh
    assert torch.equal(dst.cpu(), src)


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16], ids=str)
def test_copy_to_another_dtype_casts_as_torch_does(gpu, ring, target):
    src = torch.randn(elements(gpu, ring, 1.3)) * torch.logspace(-12, 6, elements(gpu, ring, 1.3))
    dst = torch.empty(src.shape, dtype=target, device=gpu.device)
    ring.copy_to(dst, src).wait()
    assert torch.equal(dst.cpu().view(torch.int16), src.to(target).view(torch.int16))


def test_copies_of_threads_on_their_own_streams_arrive(gpu, ring):
    is_equal: list[bool] = []

    def produce(seed: int) -> None:
        random = np.random.default_rng(seed)
        with gpu.stream():
            for _ in range(gpu.size(50, 5)):
                src = random.random(int(random.integers(1, elements(gpu, ring, 0.6))), dtype=np.float32)
                dst = torch.empty(src.shape, device=gpu.device)
                ring.copy_to(dst, src).wait()
                is_equal.append(np.array_equal(dst.cpu().numpy(), src))

    threads = [threading.Thread(target=produce, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert is_equal == [True] * (4 * gpu.size(50, 5))
    ring.check_integrity()


def test_call_item_pixels_are_copied_through_a_ring_to_the_device(gpu):
    pixels = torch.randn(gpu.size(3600, 200), 1536)
    mover = FeatureMover(torch.device(gpu.device, None if gpu.dry else 0), None, None)
    item = CallItem(bytes(32), b"", ItemCall({"pixels": pixels}))
    item.start(mover)
    doubled = item.take_arguments()["pixels"] * 2
    item.wait_until_read()
    assert torch.equal(doubled.cpu(), pixels * 2)
    assert (mover._ring is None) is gpu.dry
    mover.close()
