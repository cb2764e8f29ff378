"""`EmbedCall` with a native placement, and tensors that the native reader refuses."""

from __future__ import annotations

import pytest
import torch
from caches import make_cache
from placement_cases import make_rows, poisoned, same_bits

from vitcache import Span, _native, embed_tokens, scatter_embeddings
from vitcache.placement import destination, embed_call, placement
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.placement import Placement

WIDTH = 8


def make_call(ids: torch.Tensor, weight: torch.Tensor, out: torch.Tensor | None = None) -> EmbedCall:
    return EmbedCall(ids, weight, out, None, None, None)


def native_runs(*spans: list[Span]) -> _native.Placement:
    native = _native.Placement()
    native.add_spans(spans, Span)
    return native


class Unread(list):
    """Items of which only those in `readable` may be read."""

    readable: tuple[int, ...] = ()

    def __getitem__(self, item):
        assert item in self.readable, f"item {item} was read"
        return super().__getitem__(item)

    def __iter__(self):
        raise AssertionError("all items were read")


@torch.no_grad()
def test_run_placed_reads_only_the_items_that_the_native_placement_lacks() -> None:
    cache = make_cache(4, width=WIDTH)
    first, second, third = (make_rows(number, WIDTH, torch.float32) for number in (3, 2, 1))
    assert cache.put(bytes(32), second)
    weight, ids = torch.randn(5, WIDTH), torch.tensor([0, 9, 9, 9, 4, -1, -1, 9])
    spans = [[Span(1, 3)], [Span(5, 2)], [Span(7, 1)]]
    expected = embed_tokens(ids, weight, [first, second, third], spans)
    native = native_runs(*spans)
    call = make_call(ids, weight)
    call.check_spans(native)
    native.set_source(1, second.data_ptr(), second.stride(0) * 4, 2, 0, False)
    items = Unread([first, None, third])
    items.readable = (0, 2)
    assert same_bits(
        call.run_placed(Placement.from_native(call.destination, native, items, [0, 2])), expected
    )
    with cache.get(bytes(32)) as lease:  # a strided tensor and a lease, set out of order
        strided = torch.stack([third, third], 2)[..., 0]
        native = native_runs(*spans)
        call = make_call(ids, weight)
        placed = Placement.from_native(call.destination, native, [first, lease, strided], [2, 1, 0])
        assert same_bits(call.run_placed(placed), expected)


def test_check_spans_native_runs_with_a_wrong_text_id_are_refused() -> None:
    call = make_call(torch.tensor([0, 9, 5]), torch.randn(5, WIDTH))
    with pytest.raises(IndexError, match=r"input_ids\[2\] is 5, the weight has 5 rows"):
        call.check_spans(native_runs([Span(1, 1)]))


def test_from_native_source_that_was_not_set_has_no_rows() -> None:
    call = make_call(torch.zeros(4, dtype=torch.int64), torch.randn(5, WIDTH))
    with pytest.raises(ValueError, match=r"item 0 .* needs rows \[0, 1\) but the item has 0 rows"):
        Placement.from_native(
            call.destination, native_runs([Span(0, 1)], [Span(1, 1)]), [None, torch.ones(1, WIDTH)], [1]
        )


def test_add_spans_start_of_an_item_without_a_source_is_refused() -> None:
    with pytest.raises(ValueError, match="a start needs the rows of its item"):
        _native.Placement().add_spans([3], Span)


@pytest.fixture(params=[True, False], ids=["native reader", "no exchange functions"])
def _reader(request, monkeypatch):
    """Without DLPack's exchange functions, as in torch 2.9, Python describes every tensor."""
    if request.param:
        return
    reader = _native.TensorReader(type("OldTensor", (), {"is_neg": None}), torch.nn.Parameter)
    monkeypatch.setattr(destination, "tensor_reader", reader)
    monkeypatch.setattr(embed_call, "tensor_reader", reader)
    monkeypatch.setattr(placement, "_reader", _native.ItemReader(placement.Lease, reader))


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize("parameter", [False, True])
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_embed_tokens_every_layout_of_ids_weight_and_out_gives_the_same_bits(parameter, ids_dtype) -> None:
    rows = make_rows(3, WIDTH, torch.float32)
    weight = torch.randn(5, WIDTH)
    ids = torch.tensor([[0, 9, 9], [9, 3, 4]], dtype=ids_dtype)
    expected = torch.cat([weight[:1], rows, weight[3:]])
    wide = torch.randn(5, 2 * WIDTH)
    wide[:, :WIDTH] = weight
    negated = torch._neg_view(-weight)
    for one_weight in (weight, wide[:, :WIDTH], negated):
        if parameter and one_weight is not negated:
            one_weight = torch.nn.Parameter(one_weight)
        for one_ids in (ids, ids.reshape(-1), ids.t().contiguous().t(), ids.repeat(1, 2)[:, :3]):
            shape = (*one_ids.shape, WIDTH)
            strided = poisoned(*one_ids.shape, 2 * WIDTH, dtype=weight.dtype)[..., :WIDTH]
            for out in (None, poisoned(*shape, dtype=weight.dtype), strided):
                with torch.no_grad():
                    built = embed_tokens(one_ids, one_weight, [rows], [Span(1, 3)], out=out)
                assert built.shape == shape
                assert out is None or built is out
                assert same_bits(built.reshape(-1, WIDTH), expected)


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize("shape", [(0, WIDTH), (0, 3, WIDTH), (3, 0, WIDTH), (1, 1, WIDTH), (4, 0)])
def test_scatter_destination_of_any_size_is_accepted(shape) -> None:
    out = torch.zeros(shape)
    assert scatter_embeddings(out, [torch.ones(1, shape[-1])], [[]]) is out
    assert not out.any()
    if out.numel():
        assert scatter_embeddings(out, [torch.ones(1, shape[-1])], [0]).all()


@pytest.mark.usefixtures("_reader")
def test_scatter_increments_the_version_of_the_destination() -> None:
    out = torch.zeros(3, WIDTH)
    before = out._version
    scatter_embeddings(out, [torch.ones(1, WIDTH)], [0])
    assert out._version == before + 1


@pytest.mark.parametrize("num_tokens", [3, 40_000])
def test_scatter_short_and_long_copies_of_pages_to_a_strided_destination(num_tokens) -> None:
    cache = make_cache(num_tokens, width=WIDTH, page_rows=2)
    rows = make_rows(num_tokens - 1, WIDTH, torch.float32)
    assert cache.put(bytes(32), rows)
    wide = poisoned(num_tokens, WIDTH + 3, dtype=rows.dtype)
    with cache.get(bytes(32)) as lease:
        scatter_embeddings(wide[:, :WIDTH], [lease], [1])
        assert same_bits(wide[1:, :WIDTH], rows)
        assert wide[0].isnan().all()
        assert wide[:, WIDTH:].isnan().all()


@torch.no_grad()
def test_run_after_the_weight_moved_to_other_memory_reads_the_new_memory() -> None:
    weight, rows = torch.nn.Parameter(torch.randn(5, WIDTH)), make_rows(1, WIDTH, torch.float32)
    call = make_call(torch.tensor([0, 9, 4]), weight)
    call.check_spans([[Span(1, 1)]])
    weight.data = torch.randn(5, WIDTH)
    expected = torch.cat([weight[:1], rows, weight[4:]])
    assert same_bits(call.run([rows], [[Span(1, 1)]], None), expected)
