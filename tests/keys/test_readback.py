"""`pieces`, and `read_back` with copies that are made only when the caller waits for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from late_copies import LateCopies
from pairwise import pairwise
from torch import Tensor

from vitcache.keys.readback import pieces, read_back

SHAPES = [(), (0,), (0, 3), (3, 0), (1,), (7,), (5, 3), (3, 1, 4), (2, 3, 4, 5), (1, 1, 40), (40, 1, 1)]


def stride_variants(array: np.ndarray) -> list[np.ndarray]:
    """Return `array` and views and copies of it with other strides."""
    interleaved = np.repeat(array[..., None], 2, axis=-1)
    return [array, array.T, array[::-1] if array.ndim else array, interleaved[..., 0], interleaved]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pieces_are_views_in_c_order_of_at_most_max_bytes(shape: tuple[int, ...]) -> None:
    arrays = stride_variants(np.arange(math.prod(shape), dtype=np.float32).reshape(shape))
    for array, max_bytes in itertools.product(arrays, (4, 12, 16, 64, 1 << 20)):
        found = list(pieces(array, max_bytes))
        assert b"".join(piece.tobytes() for piece in found) == array.tobytes()
        assert all(0 < piece.nbytes <= max_bytes for piece in found)
        assert all(np.shares_memory(piece, array) for piece in found)


def test_pieces_of_elements_larger_than_max_bytes_are_single_elements() -> None:
    assert [piece.nbytes for piece in pieces(np.zeros((2, 3), np.complex64), 3)] == [8] * 6


@pairwise(
    shape=SHAPES,
    buffer_bytes=[8, 24, 1 << 20],
    dtype=[torch.uint8, torch.bool, torch.int16, torch.float32, torch.complex64],
)
def test_read_back_yields_the_bytes_in_c_order(
    shape: tuple[int, ...], buffer_bytes: int, dtype: torch.dtype
) -> None:
    values = torch.arange(math.prod(shape)).remainder(250).reshape(shape).to(dtype)
    interleaved = torch.stack([values, values], -1)
    for tensor in (
        values,
        values.permute(tuple(reversed(range(values.ndim)))),
        interleaved[..., 0],
        interleaved,
    ):
        copies = LateCopies()
        found = [block.copy() for block in read_back(tensor, copies, buffer_bytes)]
        assert b"".join(block.tobytes() for block in found) == tensor.numpy().tobytes()
        assert all(len(block) <= buffer_bytes for block in found)
        assert copies.num_started == copies.num_complete == len(found)


def test_read_back_has_one_copy_in_flight_and_two_buffers() -> None:
    copies = LateCopies()
    blocks = read_back(torch.arange(10, dtype=torch.int32), copies, 8)
    for count in range(1, 6):
        next(blocks)
        assert copies.num_complete == count
        assert copies.num_started == min(count + 1, 5)
    assert next(blocks, None) is None
    assert len(set(copies.destinations)) == 2


def test_read_back_closed_early_waits_for_the_copy_in_flight() -> None:
    copies = LateCopies()
    blocks = read_back(torch.arange(10), copies, 8)
    next(blocks)
    blocks.close()
    assert copies.num_complete == copies.num_started == 2


def test_read_back_failed_copy_raises_after_the_wait_for_the_other_copy() -> None:
    waited = []

    def start_copy(destination: Tensor, source: Tensor) -> Callable[[], None]:
        def wait() -> None:
            waited.append(len(waited))
            if len(waited) == 1:
                raise RuntimeError("the device is lost")

        return wait

    with pytest.raises(RuntimeError, match="the device is lost"):
        next(read_back(torch.arange(10), start_copy, 8))
    assert waited == [0, 1]
