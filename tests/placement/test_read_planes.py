"""The native reader of a destination with a list of levels: which tensors it takes, and which it leaves."""

from __future__ import annotations

import pytest
import torch

from vitcache.placement.destination import Destination, tensor_reader

HIDDEN = 8
READS_TENSORS = tensor_reader.read_rows(torch.zeros(1, 1)) is not None  # since torch 2.11
pytestmark = pytest.mark.skipif(not READS_TENSORS, reason="this torch has no DLPack exchange functions")


def rows(num_tokens: int = 5, hidden: int = HIDDEN, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(num_tokens, hidden, dtype=dtype)


def test_list_of_plain_levels_is_read_and_described_as_by_python() -> None:
    inputs_embeds, levels = rows(), [rows(), rows(7)[1:6], rows()]
    native = tensor_reader.read_planes(inputs_embeds, levels)
    assert (native.num_tokens, native.hidden) == (5, HIDDEN)
    fast = Destination("inputs_embeds", inputs_embeds, levels)
    checked = Destination("inputs_embeds", inputs_embeds, tuple(levels))  # a tuple is not read natively
    for name in ("num_tokens", "hidden", "width", "levels", "num_packed", "is_listed", "is_packed"):
        assert getattr(fast, name) == getattr(checked, name)
    assert [plane.data_ptr() for plane in fast.planes] == [plane.data_ptr() for plane in checked.planes]
    assert fast.deepstack is checked.deepstack is None
    one = Destination("inputs_embeds", inputs_embeds, levels[:1])
    assert one.deepstack is not None
    assert one.deepstack.shape == (1, 5, HIDDEN)
    assert Destination("inputs_embeds", inputs_embeds, []).levels == 0


BUFFER = torch.zeros(20, HIDDEN)
WIDE = torch.zeros(5, 2 * HIDDEN)


@pytest.mark.parametrize(
    ("inputs_embeds", "levels"),
    [
        (rows(), [rows(4)]),
        (rows(), [rows(hidden=4)]),
        (rows(), [rows(dtype=torch.bfloat16)]),
        (rows(), [rows()[None]]),
        (rows()[None], [rows()]),
        (rows(), [None]),
        (rows(), [rows().T.contiguous().T]),
        (rows(), [torch._neg_view(rows())]),
        (BUFFER[:5], [BUFFER[4:9]]),
        (rows(), [BUFFER[:5], rows(), BUFFER[4:9]]),
        (WIDE[:, :HIDDEN], [WIDE[:, HIDDEN:]]),  # apart, which only Python finds out
    ],
    ids=str,
)
def test_other_levels_are_left_to_python(inputs_embeds: torch.Tensor, levels: list[torch.Tensor]) -> None:
    assert tensor_reader.read_planes(inputs_embeds, levels) is None


def test_memory_is_apart_only_if_no_plane_overlaps_it() -> None:
    native = tensor_reader.read_planes(BUFFER[:5], [BUFFER[10:15]])
    for tensor, expected in [
        (rows(), True),
        (BUFFER[5:10], True),
        (BUFFER[5:11], False),
        (BUFFER[4], False),
        (BUFFER[14, HIDDEN - 1 :], False),
        (BUFFER[15:], True),
        (BUFFER[0:0], True),
        (BUFFER.view(torch.int64)[5:10], True),
        (BUFFER.view(torch.int64)[5:11], False),
    ]:
        assert tensor_reader.is_apart(native, tensor) is expected
    assert tensor_reader.is_apart(native, torch.nn.Parameter(rows()))
    assert not tensor_reader.is_apart(native, "no tensor")
