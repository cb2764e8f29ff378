"""Pixels on their way: through the ring where they are pageable and large; afterwards they may change."""

import pytest
import torch

from vitcache import CudaError, PinnedRing
from vitcache.adapters import pixels
from vitcache.adapters.pixels import PixelMover
from vitcache.testing import stand_in

DEVICE = torch.device("cpu")


@pytest.fixture
def ring():
    stand_in.reset()
    with PinnedRing(1 << 20, backend="host") as ring:
        yield ring
    stand_in.reset()


def test_large_tensors_go_through_the_ring_and_all_else_as_it_is(ring):
    values = torch.randn(300, 100)
    arguments = {"pixels": values, "grid": torch.tensor([[1, 2, 3]]), "option": "yes", "nothing": None}
    with PixelMover(ring).moved(arguments, DEVICE) as moved:
        assert torch.equal(moved["pixels"], values)
        assert moved["pixels"].data_ptr() != values.data_ptr()
        assert torch.equal(moved["grid"], arguments["grid"])
        assert (moved["option"], moved["nothing"]) == ("yes", None)
    assert ring.stats().copies == 1


def test_afterwards_the_pixels_may_change(ring):
    values = torch.ones(3 << 20, dtype=torch.uint8)  # more than the ring holds
    with PixelMover(ring).moved({"pixels": values}, DEVICE) as moved:
        pass
    values.zero_()
    assert bool((moved["pixels"] == 1).all())


def test_a_failed_copy_is_said_before_anything_is_encoded(ring):
    stand_in.fail("cudaMemcpyAsync")
    with (
        pytest.raises(CudaError, match="cudaMemcpyAsync"),
        PixelMover(ring).moved({"pixels": torch.ones(1 << 16)}, DEVICE),
    ):
        pytest.fail("the pixels are not there")


def test_without_a_ring_to_the_device_torch_copies(monkeypatch):
    monkeypatch.setattr(pixels, "RING_FROM_BYTES", 1)
    values = torch.randn(10)
    with PixelMover().moved({"pixels": values}, DEVICE) as moved:
        assert torch.equal(moved["pixels"], values)


def test_a_ring_is_made_once_for_a_gpu(monkeypatch):
    made = []

    class Ring:
        def __init__(self, capacity_bytes, **options):
            made.append((capacity_bytes, options))
            self.device = options["device"]

    monkeypatch.setattr(pixels, "PinnedRing", Ring)
    mover, device = PixelMover(), torch.device("cuda", 0)
    assert mover._ring_for(device) is mover._ring_for(device)
    assert mover._ring_for(torch.device("cuda", 1)) is None
    assert made == [(pixels.RING_BYTES, {"backend": "cuda", "device": device})]
