"""`CallItem`: its pixels are copied to the tower once, and the caller may change them after the call."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitcache import CudaError, PinnedRing
from vitcache.adapters.call_item import CallItem
from vitcache.adapters.splits.call_parts import ItemCall
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.testing import stand_in

CPU = torch.device("cpu")


def started(ring: PinnedRing, **arguments: object) -> CallItem:
    item = CallItem(bytes(32), b"", ItemCall(arguments))
    item.start(FeatureMover(CPU, ring, None))
    return item


def test_call_item_start_copies_tensors_and_keeps_other_arguments(ring: PinnedRing) -> None:
    pixels, grid = torch.randn(300, 100), torch.tensor([[1, 2, 3]])
    item = started(ring, pixels=pixels, grid=grid, sizes=[[1, 2]], option="yes", nothing=None)
    arguments = item.take_arguments()
    assert torch.equal(arguments["pixels"], pixels)
    assert arguments["pixels"].data_ptr() != pixels.data_ptr()
    assert torch.equal(arguments["grid"], grid)
    assert (arguments["sizes"], arguments["option"], arguments["nothing"]) == ([[1, 2]], "yes", None)
    assert ring.stats().copies == 2


def test_call_item_take_arguments_drops_its_references_to_the_copies(ring: PinnedRing) -> None:
    item = started(ring, pixels=torch.ones(4))
    item.take_arguments()
    assert item.moved == {}
    assert item.take_arguments()["pixels"] is item.call.pixels


def test_call_item_pixels_may_change_after_wait_until_read(ring: PinnedRing) -> None:
    pixels = torch.ones(3 << 20, dtype=torch.uint8)  # more than the capacity of the ring
    item = started(ring, pixels=pixels)
    arguments = item.take_arguments()
    item.wait_until_read()
    pixels.zero_()
    assert bool((arguments["pixels"] == 1).all())


def test_call_item_take_arguments_raises_if_a_copy_failed(ring: PinnedRing) -> None:
    stand_in.fail("cudaMemcpyAsync")
    item = started(ring, pixels=torch.ones(1 << 16))
    with pytest.raises(CudaError, match="cudaMemcpyAsync"):
        item.take_arguments()
    item.wait_until_read()


def test_call_item_that_was_not_started_returns_its_own_pixels() -> None:
    pixels = torch.from_numpy(np.ones((2, 3), dtype=np.float32))
    item = CallItem(bytes(32), b"", ItemCall({"pixels": pixels}))
    assert item.take_arguments()["pixels"] is pixels
