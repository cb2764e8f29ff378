"""Arrays in pieces, and the way back from a device, with copies that are made when they are waited for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pairwise import pairwise
from torch import Tensor

from vitcache.keys.readback import pieces, read_back

SHAPES = [(), (0,), (0, 3), (3, 0), (1,), (7,), (5, 3), (3, 1, 4), (2, 3, 4, 5), (1, 1, 40), (40, 1, 1)]


class LateCopies:
    """A device whose copies run when they are waited for, as late as they may."""

    def __init__(self) -> None:
        self.targets: list[int] = []
        self.started = self.done = 0

    def __call__(self, target: Tensor, source: Tensor) -> Callable[[], None]:
        assert target.shape == source.shape
        assert target.is_contiguous()
        self.targets.append(target.data_ptr())
        self.started += 1

        def wait() -> None:
            target.copy_(source)
            self.done += 1

        return wait


def forms(array: np.ndarray) -> list[np.ndarray]:
    """Arrays of other strides."""
    doubled = np.repeat(array[..., None], 2, axis=-1)
    return [array, array.T, array[::-1] if array.ndim else array, doubled[..., 0], doubled]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pieces_are_the_array_in_order_and_small(shape: tuple[int, ...]) -> None:
    arrays = forms(np.arange(math.prod(shape), dtype=np.float32).reshape(shape))
    for array, most in itertools.product(arrays, (4, 12, 16, 64, 1 << 20)):
        found = list(pieces(array, most))
        assert b"".join(piece.tobytes() for piece in found) == array.tobytes()
        assert all(0 < piece.nbytes <= most for piece in found)
        assert all(np.shares_memory(piece, array) for piece in found)


def test_an_element_larger_than_a_piece_comes_alone() -> None:
    assert [piece.nbytes for piece in pieces(np.zeros((2, 3), np.complex64), 3)] == [8] * 6


@pairwise(
    shape=SHAPES,
    buffer_bytes=[8, 24, 1 << 20],
    dtype=[torch.uint8, torch.bool, torch.int16, torch.float32, torch.complex64],
)
def test_what_is_read_back_are_the_bytes_in_order(
    shape: tuple[int, ...], buffer_bytes: int, dtype: torch.dtype
) -> None:
    values = torch.arange(math.prod(shape)).remainder(250).reshape(shape).to(dtype)
    doubled = torch.stack([values, values], -1)
    for tensor in (values, values.permute(tuple(reversed(range(values.ndim)))), doubled[..., 0], doubled):
        copies = LateCopies()
        found = [block.copy() for block in read_back(tensor, copies, buffer_bytes)]
        assert b"".join(block.tobytes() for block in found) == tensor.numpy().tobytes()
        assert all(len(block) <= buffer_bytes for block in found)
        assert copies.started == copies.done == len(found)


def test_one_copy_is_ahead_and_two_buffers_are_all_there_is() -> None:
    copies = LateCopies()
    blocks = read_back(torch.arange(10, dtype=torch.int32), copies, 8)
    for number in range(1, 6):
        next(blocks)
        assert copies.done == number
        assert copies.started == min(number + 1, 5)
    assert next(blocks, None) is None
    assert len(set(copies.targets)) == 2


def test_reading_that_is_given_up_waits_for_the_copy_ahead() -> None:
    copies = LateCopies()
    blocks = read_back(torch.arange(10), copies, 8)
    next(blocks)
    blocks.close()
    assert copies.done == copies.started == 2


def test_a_copy_that_fails_is_raised_after_the_other_was_waited_for() -> None:
    waited = []

    def start_copy(target: Tensor, source: Tensor) -> Callable[[], None]:
        def wait() -> None:
            waited.append(len(waited))
            if len(waited) == 1:
                raise RuntimeError("the device is lost")

        return wait

    with pytest.raises(RuntimeError, match="the device is lost"):
        next(read_back(torch.arange(10), start_copy, 8))
    assert waited == [0, 1]
