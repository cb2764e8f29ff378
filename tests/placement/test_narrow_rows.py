"""Rows without deepstack columns in a placement that accepts them."""

import pytest
import torch
from caches import make_cache
from placement_cases import make_rows, poisoned, same_bits

from vitcache import Span, _native, scatter_embeddings
from vitcache.placement.destination import Destination
from vitcache.placement.dispatch import scatter
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.placement import Placement
from vitcache.placement.scatter_call import ScatterCall

HIDDEN, LEVELS, TOKENS = 8, 2, 9


def make_scatter(device="cpu", dtype=torch.float32):
    out = poisoned(TOKENS, HIDDEN, dtype=dtype, device=device)
    levels = poisoned(LEVELS, TOKENS, HIDDEN, dtype=dtype, device=device)
    return ScatterCall(out, levels, None), out, levels


def wide(num_rows, dtype=torch.float32):
    return make_rows(num_rows, HIDDEN * (1 + LEVELS), dtype)


def check(out, levels, narrow, rows):
    """`narrow` is at tokens 0 and 1, `rows` at tokens 4 to 6; no other token is written."""
    assert same_bits(out[:2], narrow)
    assert same_bits(out[4:7], rows[:, :HIDDEN].contiguous())
    assert (levels[:, :2] == 0).all()
    assert same_bits(torch.cat([*levels[:, 4:7]], dim=1), rows[:, HIDDEN:].contiguous())
    assert out[[2, 3, 7, 8]].isnan().all()
    assert levels[:, [2, 3, 7, 8]].isnan().all()


@pytest.mark.parametrize("scale", [None, -0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scatter_narrow_rows_get_zeros_in_every_level(dtype, scale):
    narrow, rows = make_rows(2, HIDDEN, dtype), wide(3, dtype)
    call, out, levels = make_scatter()
    call._scale = scale
    placed = Placement(call.destination, [narrow, rows], [0, 4], accepts_narrow=True)
    call.run_placed(placed)
    factor = 1 if scale is None else scale
    check(out, levels, narrow.float() * factor, rows.float() * factor)
    assert not levels[:, :2].signbit().any()


def test_narrow_lease_is_placed_by_the_native_path():
    cache = make_cache(4, width=HIDDEN)
    narrow, rows = make_rows(2, HIDDEN, torch.float32), wide(3)
    assert cache.put(bytes(32), narrow)
    for embeddings in ([cache.get(bytes(32)), rows], [narrow[:, torch.arange(HIDDEN)], rows]):
        call, out, levels = make_scatter()
        native = _native.Placement()
        native.add_run(0, 0, 2, 0)
        native.add_run(1, 4, 3, 0)
        placed = Placement.from_native(call.destination, native, embeddings, [0, 1], accepts_narrow=True)
        call.run_placed(placed)
        check(out, levels, narrow, rows)


def test_embed_narrow_rows_with_packed_levels_fill_their_rows_with_zeros():
    weight, ids = make_rows(5, HIDDEN, torch.float32), torch.zeros(TOKENS, dtype=torch.int64)
    narrow, rows = make_rows(2, HIDDEN, torch.float32), wide(3)
    packed = poisoned(LEVELS, 5, HIDDEN, dtype=torch.float32)
    call = EmbedCall(ids, weight, None, None, None, None, deepstack_rows=packed)
    placed = Placement(
        call.destination, [rows, narrow], [4, [Span(0, 1, 1), Span(7, 1)]], accepts_narrow=True
    )
    out = call.run_placed(placed)
    assert same_bits(out[[0, 7]], narrow[[1, 0]])
    assert (packed[:, [0, 4]] == 0).all()
    assert same_bits(torch.cat([*packed[:, 1:4]], dim=1), rows[:, HIDDEN:].contiguous())


def test_store_of_narrow_rows_writes_narrow_pages():
    narrow, rows = make_rows(2, HIDDEN, torch.float32), wide(3)
    caches = make_cache(4, width=HIDDEN, dtype=torch.bfloat16), make_cache(4, width=rows.shape[1])
    first, second = caches[0].reserve(bytes(32), 2), caches[1].reserve(bytes(32), 3)
    call, out, levels = make_scatter()
    with pytest.raises(
        ValueError, match=r"items 0 and 1 would be stored as torch.bfloat16 and torch.float32"
    ):
        Placement(call.destination, [narrow, rows], [0, 4], [first, second], accepts_narrow=True)
    call.run_placed(Placement(call.destination, [narrow, rows], [0, 4], [first, None], accepts_narrow=True))
    check(out, levels, narrow.bfloat16().float(), rows)
    assert same_bits(first.to_tensor(), narrow.bfloat16())
    wrong = caches[1].reserve(bytes([1]) * 32, 2)
    with pytest.raises(
        ValueError, match="the reservation of item 0 has rows of width 24, the item has rows of width 8"
    ):
        Placement(call.destination, [narrow], [0], [wrong], accepts_narrow=True)
    with pytest.raises(
        ValueError, match="the reservation of item 0 has rows of width 8, the destination takes 24"
    ):
        Placement(call.destination, [wide(2)], [0], [first], accepts_narrow=True)


def test_narrow_rows_without_the_option_are_refused_and_write_nothing():
    cache = make_cache(4, width=HIDDEN)
    narrow = make_rows(2, HIDDEN, torch.float32)
    assert cache.put(bytes(32), narrow)
    lease, message = cache.get(bytes(32)), "item 1 has rows of width 8, the destination takes 24"
    for item in (narrow, lease, cache.reserve(bytes([1]) * 32, 2)):
        call, out, levels = make_scatter()
        with pytest.raises(ValueError, match=message):
            scatter_embeddings(out, [wide(2), item], [0, 4], deepstack=levels)
        with pytest.raises(ValueError, match=message):
            Placement(call.destination, [wide(2), item], [0, 4])
        with pytest.raises(ValueError, match=message):
            Placement.from_native(call.destination, _native.Placement(), [wide(2), item], [0, 1])
        assert out.isnan().all()
        assert levels.isnan().all()
    with pytest.raises(ValueError, match="item 0 has rows of width 16, the destination takes 24"):
        Placement(call.destination, [make_rows(2, 16, torch.float32)], [0], accepts_narrow=True)


def test_narrow_item_memory_is_checked_with_its_own_width():
    # Columns: rows of the destination, the narrow rows, and the levels.
    memory = poisoned(TOKENS, 4 * HIDDEN, dtype=torch.float32)
    levels = memory[:, 2 * HIDDEN :].view(TOKENS, 2, HIDDEN).permute(1, 0, 2)
    memory[:2, HIDDEN : 2 * HIDDEN] = narrow = make_rows(2, HIDDEN, torch.float32)
    call = ScatterCall(memory[:, :HIDDEN], levels, None)
    call.run_placed(Placement(call.destination, [memory[:2, HIDDEN : 2 * HIDDEN]], [5], accepts_narrow=True))
    assert same_bits(memory[5:7, :HIDDEN].contiguous(), narrow)
    assert (levels[:, 5:7] == 0).all()
    with pytest.raises(ValueError, match="item 0 shares memory with the destination"):
        Placement(call.destination, [levels[1, :2]], [5], accepts_narrow=True)


def test_gradients_of_narrow_and_wide_rows_are_those_of_their_tokens():
    narrow, rows = make_rows(2, HIDDEN, torch.float32).requires_grad_(), wide(3).requires_grad_()
    call, out, levels = make_scatter()
    placed = Placement(call.destination, [narrow, rows], [0, 4], accepts_narrow=True)
    call.run_placed(placed)
    check(out.detach(), levels.detach(), narrow.detach(), rows.detach())
    (out[:7].nansum() + 2 * levels.nansum()).backward()
    assert (narrow.grad == 1).all()
    assert (rows.grad[:, :HIDDEN] == 1).all()
    assert (rows.grad[:, HIDDEN:] == 2).all()


def test_narrow_rows_in_a_destination_without_levels_are_ordinary_rows():
    out, rows = poisoned(4, HIDDEN, dtype=torch.float32), make_rows(2, HIDDEN, torch.float32)
    destination = Destination("out", out, None)
    placed = Placement(destination, [rows], [1], accepts_narrow=True)
    assert not placed.native.has_narrow(0)
    scatter(destination, placed, None)
    assert same_bits(out[1:3], rows)
