"""The native reader of a destination with levels: which tensors it takes, and which it leaves to Python."""

from __future__ import annotations

import pytest
import torch
from torch_version import HAS_EXCHANGE

from vitcache import scatter_embeddings
from vitcache.placement import destination as destination_module
from vitcache.placement.destination import Destination, tensor_reader

HIDDEN = 8
pytestmark = pytest.mark.skipif(not HAS_EXCHANGE, reason="this torch has no DLPack exchange functions")


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


class RowsReader:
    """A reader that leaves all levels to Python."""

    is_apart = staticmethod(tensor_reader.is_apart)
    read_rows = staticmethod(tensor_reader.read_rows)

    @staticmethod
    def read_packed(rows: object, levels: object) -> None:
        return None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(12, HIDDEN), (3, 4, HIDDEN)], ids=str)
@pytest.mark.parametrize("sizes", [(2, 5), (1, 5), (3, 1), (0, 5)], ids=str)
def test_packed_levels_are_read_and_described_as_by_python(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, ...], sizes: tuple[int, int]
) -> None:
    inputs_embeds, levels = torch.zeros(shape, dtype=dtype), torch.zeros(*sizes, HIDDEN, dtype=dtype)
    assert tensor_reader.read_packed(inputs_embeds, levels) is not None
    fast = Destination("inputs_embeds", inputs_embeds, None, levels)
    monkeypatch.setattr(destination_module, "tensor_reader", RowsReader)
    checked = Destination("inputs_embeds", inputs_embeds, None, levels)
    for name in ("num_tokens", "hidden", "width", "levels", "num_packed", "is_listed", "is_packed", "device"):
        assert getattr(fast, name) == getattr(checked, name), name
    assert [plane.data_ptr() for plane in fast.planes] == [plane.data_ptr() for plane in checked.planes]
    assert [plane.stride() for plane in fast.planes] == [plane.stride() for plane in checked.planes]
    assert fast.deepstack is checked.deepstack is levels
    tables = [torch.zeros(2 * sizes[0], dtype=torch.int64) for _ in range(2)]
    for destination, table in zip((fast, checked), tables, strict=True):
        destination.native.write_level_table(table.data_ptr())
    assert torch.equal(*tables)


PACKED = torch.zeros(2, 6, HIDDEN)


@pytest.mark.parametrize(
    ("inputs_embeds", "levels", "error"),
    [
        (rows(), torch.zeros(3, 2 * HIDDEN), r"shape \(3, 16\), it must be \(L, N, 8\)"),
        (rows(), torch.zeros(2, 3, 4), r"shape \(2, 3, 4\), it must be"),
        (rows(), torch.zeros(2, 3, HIDDEN, dtype=torch.bfloat16), "is torch.bfloat16, inputs_embeds is"),
        (rows(), torch.zeros(2, 3, HIDDEN, device="meta"), "is on meta, inputs_embeds is on cpu"),
        (rows(), torch.zeros(2, 3, HIDDEN).to_sparse(), "sparse_coo tensor, it must be dense"),
        (rows(), [rows(), rows()], "must be a tensor, got list"),
        (rows(), torch._neg_view(torch.zeros(2, 3, HIDDEN)), "negative bit"),
        (rows(), torch.zeros(2, HIDDEN, 3).transpose(1, 2), "stride 3 between elements of a row"),
        (rows(), torch.zeros(2, 1, HIDDEN).expand(2, 3, HIDDEN), "stride 0 between rows"),
        (rows(), torch.zeros(1, 3, HIDDEN).expand(2, 3, HIDDEN), "levels 0 and 1 share memory"),
        (PACKED[0], PACKED, "deepstack_rows shares memory with inputs_embeds"),
        (PACKED.view(-1, HIDDEN)[:7], PACKED[1:], "deepstack_rows shares memory with inputs_embeds"),
        (rows(dtype=torch.float64), torch.zeros(2, 3, HIDDEN, dtype=torch.float64), "is torch.float64"),
        (rows()[0], torch.zeros(2, 3, HIDDEN), "1 dimensions"),
    ],
)
def test_refused_packed_levels_get_the_errors_of_python(
    inputs_embeds: torch.Tensor, levels: object, error: str
) -> None:
    assert tensor_reader.read_packed(inputs_embeds, levels) is None
    with pytest.raises((TypeError, ValueError), match=error):
        Destination("inputs_embeds", inputs_embeds, None, levels)


@pytest.mark.parametrize(
    ("inputs_embeds", "levels"),
    [
        (rows(), torch.zeros(2, 3, 2 * HIDDEN)[..., HIDDEN:]),
        (rows(), torch.zeros(3, 2, HIDDEN).transpose(0, 1)),
        (rows(), torch.zeros(2, 3, HIDDEN)[::2]),
        (rows()[None][:, ::2], torch.zeros(2, 3, HIDDEN)),
        (rows()[:0], torch.zeros(2, 0, HIDDEN)),
        (PACKED[0], PACKED[1:]),
        (PACKED[1, 2:], PACKED[1:, :2]),
        (WIDE[:, :HIDDEN], WIDE[:, HIDDEN:][None]),
        (torch.nn.Parameter(rows()), torch.nn.Parameter(torch.zeros(2, 3, HIDDEN))),
    ],
)
def test_packed_levels_of_any_layout_get_the_rows_of_every_token(
    inputs_embeds: torch.Tensor, levels: torch.Tensor
) -> None:
    num_levels, num_packed, _ = levels.shape
    image = torch.randn(num_packed, (1 + num_levels) * HIDDEN)
    with torch.no_grad():
        scatter_embeddings(inputs_embeds, [image], [0], deepstack_rows=levels)
    assert torch.equal(inputs_embeds.reshape(-1, HIDDEN)[:num_packed], image[:, :HIDDEN])
    for level, rows_of_level in enumerate(levels, 1):
        assert torch.equal(rows_of_level, image[:, HIDDEN * level : HIDDEN * (level + 1)])


def test_deepstack_beside_packed_levels_is_a_value_error() -> None:
    levels = torch.zeros(1, 3, HIDDEN)
    with pytest.raises(ValueError, match="deepstack and deepstack_rows exclude each other"):
        Destination("inputs_embeds", rows(), [rows()], levels)


def test_versions_of_packed_levels_are_incremented_by_a_call() -> None:
    inputs_embeds, levels = rows(), torch.zeros(1, 3, HIDDEN)
    before = inputs_embeds._version, levels._version
    scatter_embeddings(inputs_embeds, [torch.ones(3, 2 * HIDDEN)], [0], deepstack_rows=levels)
    assert (inputs_embeds._version, levels._version) == (before[0] + 1, before[1] + 1)


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
