"""An item of a call: its pixels go to the tower once, and may change once the call is over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitcache import CudaError, PinnedRing
from vitcache.adapters.call_item import CallItem
from vitcache.adapters.families import ItemCall
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.testing import stand_in

CPU = torch.device("cpu")


def started(ring: PinnedRing, **arguments: object) -> CallItem:
    item = CallItem(bytes(32), ItemCall(arguments))
    item.start(FeatureMover(CPU, ring, None))
    return item


def test_every_tensor_is_moved_and_all_else_is_as_it_was(ring: PinnedRing) -> None:
    pixels, grid = torch.randn(300, 100), torch.tensor([[1, 2, 3]])
    item = started(ring, pixels=pixels, grid=grid, sizes=[[1, 2]], option="yes", nothing=None)
    arguments = item.take_arguments()
    assert torch.equal(arguments["pixels"], pixels)
    assert arguments["pixels"].data_ptr() != pixels.data_ptr()
    assert torch.equal(arguments["grid"], grid)
    assert (arguments["sizes"], arguments["option"], arguments["nothing"]) == ([[1, 2]], "yes", None)
    assert ring.stats().copies == 2


def test_what_was_taken_is_not_kept(ring: PinnedRing) -> None:
    item = started(ring, pixels=torch.ones(4))
    item.take_arguments()
    assert item.moved == {}
    assert item.take_arguments()["pixels"] is item.call.pixels


def test_once_it_was_read_the_pixels_may_change(ring: PinnedRing) -> None:
    pixels = torch.ones(3 << 20, dtype=torch.uint8)  # more than the ring holds
    item = started(ring, pixels=pixels)
    arguments = item.take_arguments()
    item.wait_until_read()
    pixels.zero_()
    assert bool((arguments["pixels"] == 1).all())


def test_a_failed_copy_is_said_before_the_tower_has_the_pixels(ring: PinnedRing) -> None:
    stand_in.fail("cudaMemcpyAsync")
    item = started(ring, pixels=torch.ones(1 << 16))
    with pytest.raises(CudaError, match="cudaMemcpyAsync"):
        item.take_arguments()
    item.wait_until_read()


def test_pixels_that_are_there_are_not_copied() -> None:
    pixels = torch.from_numpy(np.ones((2, 3), dtype=np.float32))
    item = CallItem(bytes(32), ItemCall({"pixels": pixels}))
    assert item.take_arguments()["pixels"] is pixels
