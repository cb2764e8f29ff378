"""`scatter_embeddings` and `embed_tokens`: results and errors, on every available device."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from caches import make_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_cases import FLOAT_DTYPES, expected_scatter, make_rows, poisoned, same_bits, untouched

from vitcache import Span, embed_tokens, scatter_embeddings
from vitcache._native import Ledger, Tier
from vitcache.device.streams import CPU_STREAM, CpuTimeline
from vitcache.pages.lease import Lease, LeaseTier
from vitcache.placement import dispatch
from vitcache.rows import KINDS

HIDDEN = 24


def packed_spans(*spans):
    return np.array([tuple(span) for span in spans], dtype=np.int64).reshape(-1, 3)


@pytest.mark.parametrize("source", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("target", FLOAT_DTYPES, ids=str)
def test_scatter_writes_the_tokens_of_the_spans_and_no_other(device, source, target):
    items = [make_rows(n, HIDDEN, source, device) for n in (5, 1, 7)]
    spans = [Span(2, 3, 1), 9, [Span(0, 1, 6), Span(11, 4, 2), Span(10, 1, 0)]]
    out = poisoned(16, HIDDEN, dtype=target, device=device)
    expected, _ = expected_scatter(out, items, spans)
    assert scatter_embeddings(out, items, spans) is out
    assert same_bits(out, expected)
    outside_spans = [1, 5, 6, 7, 8, 15]
    assert out[outside_spans].isnan().all()
    assert out.isnan().all(dim=1).sum() == len(outside_spans)


def test_scatter_into_batch_indexes_flattened_tokens(device):
    out = poisoned(2, 6, HIDDEN, dtype=torch.bfloat16, device=device)
    rows = make_rows(4, HIDDEN, torch.bfloat16, device)
    scatter_embeddings(out, [rows], [4])
    assert same_bits(out.view(-1, HIDDEN)[4:8], rows)
    assert out.isnan().sum() == 8 * HIDDEN


@pytest.mark.parametrize("levels", [1, 3])
def test_scatter_with_deepstack_writes_columns_to_their_levels(device, levels):
    rows = make_rows(5, HIDDEN * (1 + levels), torch.float16, device)
    out = poisoned(8, HIDDEN, dtype=torch.float16, device=device)
    deepstack = poisoned(levels, 8, HIDDEN, dtype=torch.float16, device=device)
    expected = expected_scatter(out, [rows], [Span(2, 4, 1)], deepstack)
    scatter_embeddings(out, [rows], [Span(2, 4, 1)], deepstack=deepstack)
    assert same_bits(out, expected[0])
    assert same_bits(deepstack, expected[1])


@pytest.mark.parametrize("target", FLOAT_DTYPES, ids=str)
def test_scatter_scale_multiplies_in_float32(device, target):
    rows = make_rows(6, HIDDEN, torch.bfloat16, device)
    out = poisoned(6, HIDDEN, dtype=target, device=device)
    scatter_embeddings(out, [rows], [0], scale=1.7)
    assert same_bits(out, (rows.float() * 1.7).to(target))


def test_scatter_packed_tensor_equals_list_of_tensors(device):
    rows = make_rows(9, HIDDEN, torch.float32, device)
    spans = [Span(7, 3, 0), Span(0, 2, 5), Span(3, 0, 9)]
    listed = poisoned(12, HIDDEN, dtype=torch.float32, device=device)
    packed, from_tensor = listed.clone(), listed.clone()
    scatter_embeddings(listed, [rows], [spans])
    scatter_embeddings(packed, rows, packed_spans(*spans))
    scatter_embeddings(from_tensor, rows, torch.from_numpy(packed_spans(*spans)))
    assert same_bits(packed, listed)
    assert same_bits(from_tensor, listed)


def test_scatter_strided_destination_and_sources_places_the_rows(device):
    wide = poisoned(10, 3 * HIDDEN, dtype=torch.bfloat16, device=device)
    out = wide[:, HIDDEN : 2 * HIDDEN]
    every_other = make_rows(8, HIDDEN, torch.bfloat16, device)[::2]
    transposed = make_rows(HIDDEN, 3, torch.bfloat16, device).t()
    repeated = make_rows(1, HIDDEN, torch.bfloat16, device).expand(2, HIDDEN)
    scatter_embeddings(out, [every_other, transposed, repeated], [0, 4, 8])
    assert same_bits(out[:4].contiguous(), every_other.contiguous())
    assert same_bits(out[4:7].contiguous(), transposed.contiguous())
    assert same_bits(out[8:].contiguous(), repeated.contiguous())
    assert wide[:, :HIDDEN].isnan().all()
    assert wide[:, 2 * HIDDEN :].isnan().all()


def test_scatter_leases_and_tensors_mixed_places_all_rows(device):
    cache = make_cache(8, width=HIDDEN, page_rows=4, device=device)
    rows = make_rows(10, HIDDEN, torch.float32, device)
    fresh = make_rows(3, HIDDEN, torch.float32, device)
    assert cache.put(b"k" * 32, rows)
    out = poisoned(20, HIDDEN, dtype=torch.float32, device=device)
    with cache.get(b"k" * 32) as lease:
        scatter_embeddings(out, [lease, fresh, lease], [Span(1, 6, 3), 8, [Span(12, 1, 9), Span(15, 2, 0)]])
    expected, _ = expected_scatter(
        poisoned(20, HIDDEN, dtype=torch.float32, device=device),
        [rows, fresh, rows],
        [Span(1, 6, 3), 8, [Span(12, 1, 9), Span(15, 2, 0)]],
    )
    assert same_bits(out, expected)


def test_scatter_released_lease_is_refused_and_writes_nothing(device):
    cache = make_cache(8, width=HIDDEN, page_rows=4, device=device)
    cache.put(b"k" * 32, make_rows(4, HIDDEN, torch.float32, device))
    lease = cache.get(b"k" * 32)
    lease.release()
    out = poisoned(8, HIDDEN, dtype=torch.float32, device=device)
    with pytest.raises(RuntimeError, match="item 1: its lease of 4 rows was released"):
        scatter_embeddings(out, [make_rows(2, HIDDEN, torch.float32, device), lease], [0, 3])
    assert out.isnan().all()


def test_scatter_without_rows_or_tokens_writes_nothing(device):
    out = poisoned(4, HIDDEN, dtype=torch.float32, device=device)
    scatter_embeddings(out, [], [])
    scatter_embeddings(out, [make_rows(0, HIDDEN, torch.float32, device)], [4])
    scatter_embeddings(out, [make_rows(2, HIDDEN, torch.float32, device)], [[]])
    scatter_embeddings(out, make_rows(2, HIDDEN, torch.float32, device), packed_spans())
    assert out.isnan().all()
    empty = torch.empty(0, HIDDEN, device=device)
    assert scatter_embeddings(empty, [], []) is empty


BAD_SCATTERS = [
    (IndexError, r"item 1 \(tokens \[6, 9\)\) does not fit in 8 tokens", [0, 6], {}),
    (ValueError, r"item 0 \(tokens \[1, 4\)\) and item 1 \(tokens \[3, 6\)\) overlap", [1, 3], {}),
    (ValueError, r"item 0 .* and item 0 .* overlap", [[Span(0, 2), Span(1, 1)], 4], {}),
    (ValueError, r"needs rows \[2, 5\) but the item has 3 rows", [Span(0, 3, 2), 4], {}),
    (ValueError, r"item 1: span start is -1, it must be at least 0", [0, -1], {}),
    (ValueError, r"got 2 embeddings and 1 entries of spans", [0], {}),
    (TypeError, r"item 1: spans must be an int, a Span or a list of Span, not float", [0, 4.0], {}),
    (TypeError, r"item 0: every span must be a Span, got tuple", [[(0, 2)], 4], {}),
    (TypeError, r"spans must be a list with one entry per item, got Span", Span(0, 3), {}),
    (
        ValueError,
        r"width 24, the destination takes 48 \(hidden 24 x \(1 \+ 1 ",
        [0, 4],
        {"deepstack": (1, 8, HIDDEN)},
    ),
    (
        ValueError,
        r"deepstack has shape \(1, 7, 24\), it must be \(L, 8, 24\)",
        [0, 4],
        {"deepstack": (1, 7, HIDDEN)},
    ),
]


@pytest.mark.parametrize(
    ("error", "message", "spans", "shapes"), BAD_SCATTERS, ids=[case[1][:40] for case in BAD_SCATTERS]
)
def test_scatter_bad_spans_or_deepstack_raises_and_writes_nothing(device, error, message, spans, shapes):
    items = [make_rows(3, HIDDEN, torch.float32, device) for _ in range(2)]
    out = poisoned(8, HIDDEN, dtype=torch.float32, device=device)
    options = {name: poisoned(*shape, dtype=torch.float32, device=device) for name, shape in shapes.items()}
    with pytest.raises(error, match=message):
        scatter_embeddings(out, items, spans, **options)
    assert out.isnan().all()


BAD_ITEMS = [
    (ValueError, "item 1 has rows of width 23, the destination takes 24", torch.zeros(2, 23)),
    (ValueError, r"item 1 has shape \(2, 1, 24\), it must be \(rows, 24\)", torch.zeros(2, 1, 24)),
    (
        TypeError,
        "item 1 is torch.float64, it must be float32, float16 or bfloat16",
        torch.zeros(2, 24).double(),
    ),
    (
        TypeError,
        "item 1 must be a tensor, a Lease or a Reservation, got ndarray",
        np.zeros((2, 24), np.float32),
    ),
    (ValueError, "item 1 is on meta, the destination is on", torch.zeros(2, 24, device="meta")),
]


@pytest.mark.parametrize(("error", "message", "rows"), BAD_ITEMS, ids=[case[1][:40] for case in BAD_ITEMS])
def test_scatter_bad_item_raises_with_its_number_and_writes_nothing(device, error, message, rows):
    rows = rows.to(device) if isinstance(rows, torch.Tensor) and rows.device.type == "cpu" else rows
    out = poisoned(8, HIDDEN, dtype=torch.float32, device=device)
    with pytest.raises(error, match=message):
        scatter_embeddings(out, [make_rows(2, HIDDEN, torch.float32, device), rows], [0, 4])
    assert out.isnan().all()


def test_scatter_item_inside_the_destination_is_refused(device):
    out = make_rows(8, HIDDEN, torch.float32, device)
    before = out.clone()
    for rows in (out[2:4], out[7:], out.view(4, 2 * HIDDEN)[:, :HIDDEN]):
        with pytest.raises(ValueError, match="item 1 shares memory with the destination"):
            scatter_embeddings(out, [make_rows(1, HIDDEN, torch.float32, device), rows], [0, 4])
    deepstack = make_rows(8, HIDDEN, torch.float32, device).view(1, 8, HIDDEN)
    with pytest.raises(ValueError, match="item 0 shares memory"):
        scatter_embeddings(out, [deepstack.view(4, 2 * HIDDEN)], [0], deepstack=deepstack)
    assert same_bits(out, before)
    neighbours = make_rows(16, HIDDEN, torch.float32, device)
    assert same_bits(scatter_embeddings(neighbours[:8], [neighbours[8:]], [0]), neighbours[8:])


def test_scatter_deepstack_levels_that_share_memory_are_refused(device):
    rows = make_rows(3, 3 * HIDDEN, torch.float32, device)
    out = poisoned(5, HIDDEN, dtype=torch.float32, device=device)
    memory = poisoned(40 * HIDDEN, dtype=torch.float32, device=device)
    for levels in (
        memory[: 5 * HIDDEN].view(1, 5, HIDDEN).expand(2, 5, HIDDEN),
        memory.as_strided((2, 5, HIDDEN), (HIDDEN // 2, 2 * HIDDEN, 1)),
    ):
        with pytest.raises(ValueError, match="deepstack levels 0 and 1 share memory"):
            scatter_embeddings(out, [rows], [1], deepstack=levels)
    assert out.isnan().all()
    assert memory.isnan().all()


def test_scatter_planes_in_disjoint_columns_of_one_buffer_are_written(device):
    rows = make_rows(3, 3 * HIDDEN, torch.float32, device)
    buffer = poisoned(5, 3 * HIDDEN, dtype=torch.float32, device=device)
    levels = buffer[:, HIDDEN:].view(5, 2, HIDDEN).permute(1, 0, 2)
    scatter_embeddings(buffer[:, :HIDDEN], [rows], [1], deepstack=levels)
    assert same_bits(buffer[1:4], rows)
    assert buffer[[0, 4]].isnan().all()
    with pytest.raises(ValueError, match="deepstack shares memory with inputs_embeds"):
        scatter_embeddings(buffer[:, 1 : HIDDEN + 1], [rows], [1], deepstack=levels)


def test_operations_tensors_with_the_negative_bit_keep_their_sign(device):
    rows, ids = make_rows(9, HIDDEN, torch.float32, device), torch.arange(9, device=device)
    negated = torch._neg_view(rows)
    single = torch.randn(9, 1, dtype=torch.complex64, device=device).conj().imag
    assert single.is_neg()
    for source in (negated, single):
        for embeddings, spans in (([source], [0]), (source, packed_spans(Span(0, 9)))):
            out = poisoned(9, source.shape[1], dtype=torch.float32, device=device)
            assert same_bits(scatter_embeddings(out, embeddings, spans), source.resolve_neg())
    assert same_bits(embed_tokens(torch._neg_view(-ids), negated, [], []), -rows)
    with pytest.raises(ValueError, match="inputs_embeds has torch's negative bit set"):
        scatter_embeddings(negated, [rows[:1].clone()], [0])


def test_operations_sparse_tensor_is_refused(device):
    dense, ids = make_rows(3, HIDDEN, torch.float32, device), torch.zeros(3, dtype=torch.int64, device=device)
    sparse = dense.to_sparse()
    for name, call in [
        ("item 0", lambda: scatter_embeddings(dense, [sparse], [0])),
        ("inputs_embeds", lambda: scatter_embeddings(sparse, [dense], [0])),
        ("deepstack", lambda: scatter_embeddings(dense, [dense], [0], deepstack=sparse[None])),
        ("weight", lambda: embed_tokens(ids, sparse, [], [])),
        ("input_ids", lambda: embed_tokens(ids.to_sparse(), dense, [], [])),
    ]:
        with pytest.raises(TypeError, match=rf"{name} is a torch\.sparse_coo tensor, it must be dense"):
            call()


def test_scatter_strided_item_that_overlaps_the_destination_is_refused(device):
    wide = make_rows(8, 2 * HIDDEN, torch.float32, device)
    before, left, right = wide.clone(), wide[:, :HIDDEN], wide[:, HIDDEN:]
    with pytest.raises(ValueError, match="item 0 shares memory"):
        scatter_embeddings(left, [wide[2:4, 1 : HIDDEN + 1]], [0])
    with pytest.raises(ValueError, match=r"has stride 0 between rows, it must be at least 24"):
        scatter_embeddings(
            wide[:1, :HIDDEN].expand(4, HIDDEN), [make_rows(2, HIDDEN, torch.float32, device)], [0]
        )
    assert same_bits(wide, before)
    scatter_embeddings(left, [right[2:4]], [0])
    assert same_bits(wide[:2, :HIDDEN].contiguous(), before[2:4, HIDDEN:].contiguous())


def test_operations_output_that_shares_memory_is_refused_and_not_written(device):
    weight = make_rows(6, HIDDEN, torch.float32, device)
    ids, before = torch.zeros(6, dtype=torch.int64, device=device), weight.clone()
    with pytest.raises(ValueError, match="weight shares memory with the destination"):
        embed_tokens(ids, weight, [], [], out=weight)
    rows = make_rows(1, 2 * HIDDEN, torch.float32, device)
    with pytest.raises(ValueError, match="deepstack shares memory with inputs_embeds"):
        scatter_embeddings(weight, [rows], [0], deepstack=weight.view(1, 6, HIDDEN))
    assert same_bits(weight, before)


def test_embed_tokens_strided_ids_look_up_the_right_rows(device):
    weight, table = make_rows(50, HIDDEN, torch.float32, device), torch.randint(0, 50, (7, 3), device=device)
    for ids in (table[:, 1], table[::2, :2], table[:1, :1].expand(2, 4)):
        assert same_bits(embed_tokens(ids, weight, [], []), weight[ids])


@pytest.mark.parametrize("scale", ["x", 1j, [2.0], True, torch.ones(3)], ids=str)
def test_operations_scale_that_is_not_a_number_is_refused(device, scale):
    weight = make_rows(5, HIDDEN, torch.float32, device)
    out = poisoned(2, HIDDEN, dtype=torch.float32, device=device)
    rows, ids = make_rows(1, HIDDEN, torch.float32, device), torch.zeros(2, dtype=torch.int64, device=device)
    for name in ("scale", "text_scale"):
        with pytest.raises(TypeError, match=f"{name} must be a real number or None"):
            embed_tokens(ids, weight, [rows], [0], out=out, **{name: scale})
    with pytest.raises(TypeError, match="scale must be a real number or None"):
        scatter_embeddings(out, [rows], [0], scale=scale)
    assert out.isnan().all()


def test_scatter_deepstack_with_zero_levels_writes_the_rows(device):
    out = poisoned(2, 3, HIDDEN, dtype=torch.float32, device=device)
    deepstack = torch.empty(0, 2, 3, HIDDEN, device=device)
    rows = make_rows(2, HIDDEN, torch.float32, device)
    assert same_bits(scatter_embeddings(out, [rows], [1], deepstack=deepstack).view(-1, HIDDEN)[1:3], rows)


def test_operations_meta_and_fake_tensors_bypass_the_launchers(monkeypatch):
    monkeypatch.setattr(dispatch, "scatter", None)
    monkeypatch.setattr(dispatch, "embed", None)
    weight, ids = torch.empty(5, HIDDEN, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    rows = torch.empty(2, HIDDEN, device="meta")
    assert embed_tokens(ids, weight, [rows], [1]).shape == (3, HIDDEN)
    out = torch.empty(3, HIDDEN, device="meta")
    assert scatter_embeddings(out, [rows], [1]) is out
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(3, HIDDEN)
        assert scatter_embeddings(fake, [torch.empty(2, HIDDEN)], [1]) is fake


def test_scatter_lease_of_another_device_is_refused():
    key, device = bytes(32), torch.device("cuda", 1)
    tier = Tier("device", 4, 4, HIDDEN, 4 * HIDDEN, 0, KINDS[torch.float32], True, 1, None)
    lease_tier = LeaseTier(CpuTimeline(), "device", 4, HIDDEN, torch.float32, device)
    ledger = Ledger("lru", tier, None, Lease, lease_tier, lease_tier)
    assert ledger.finish(ledger.begin_write(key, 4, HIDDEN, 1.0, None), (CPU_STREAM, None), False)
    out = poisoned(8, HIDDEN, dtype=torch.float32)
    with (
        ledger.get(key, None) as lease,
        pytest.raises(ValueError, match="item 0 is a lease of a cache on cuda:1, the destination is on cpu"),
    ):
        scatter_embeddings(out, [lease], [0])
    assert out.isnan().all()


def test_operations_several_megabytes_by_four_threads_places_every_row(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    rows = make_rows(1500, 2048, torch.bfloat16)
    short = [Span(20 * i, 15, 15 * i) for i in range(100)]
    expected, _ = expected_scatter(poisoned(2000, 2048, dtype=torch.bfloat16), [rows], [short])
    assert same_bits(
        scatter_embeddings(poisoned(2000, 2048, dtype=torch.bfloat16), [rows], [short]), expected
    )
    weight = make_rows(100, 2048, torch.bfloat16)
    ids = torch.randint(0, 100, (2000,))
    expected = weight[ids]
    expected[300:1800] = rows
    assert same_bits(embed_tokens(ids, weight, [rows], [300]), expected)
    assert same_bits(scatter_embeddings(weight[ids], [rows], [300]), expected)


def test_operations_more_than_2_to_the_31_elements_places_the_last_rows():
    num_tokens, rows = (1 << 31) // HIDDEN + 9, make_rows(4, HIDDEN, torch.bfloat16)
    out = untouched(num_tokens * HIDDEN, torch.bfloat16).view(num_tokens, HIDDEN)
    scatter_embeddings(out, [rows], [num_tokens - 4])
    assert same_bits(out[-4:], rows)
    assert same_bits(embed_tokens(torch.tensor([num_tokens - 1, 0]), out, [], [])[0], rows[3])


def test_scatter_bad_destination_is_refused(device):
    rows = [make_rows(2, HIDDEN, torch.float32, device)]
    for error, message, out in [
        (TypeError, "inputs_embeds is torch.int64", torch.zeros(4, HIDDEN, dtype=torch.int64, device=device)),
        (TypeError, "inputs_embeds must be a tensor, got list", [[0.0]]),
        (ValueError, "inputs_embeds has 1 dimensions", torch.zeros(HIDDEN, device=device)),
        (
            ValueError,
            "inputs_embeds has stride 4 between elements",
            torch.zeros(HIDDEN, 4, device=device).t(),
        ),
        (ValueError, "cannot be viewed as rows", torch.zeros(2, 8, HIDDEN, device=device)[:, :3]),
    ]:
        with pytest.raises(error, match=message):
            scatter_embeddings(out, rows, [0])


def test_scatter_bad_packed_spans_are_refused_and_nothing_is_written(device):
    out, rows = (
        poisoned(8, HIDDEN, dtype=torch.float32, device=device),
        make_rows(4, HIDDEN, torch.float32, device),
    )
    for error, message, spans in [
        (TypeError, r"spans of one packed tensor must be an int64 array \(n, 3\), not list", [Span(0, 4)]),
        (TypeError, "spans must be int64, they are int32", np.zeros((1, 3), np.int32)),
        (ValueError, r"spans have shape \(3,\), it must be \(n, 3\)", np.zeros(3, np.int64)),
        (IndexError, "span length is 4611686018427387904", np.array([[0, 2**62, 0]])),
        (ValueError, "needs rows", np.array([[0, 5, 0]])),
    ]:
        with pytest.raises(error, match=message):
            scatter_embeddings(out, rows, spans)
    assert out.isnan().all()


def test_scatter_over_a_saved_tensor_makes_backward_raise(device):
    leaf = torch.ones(4, HIDDEN, device=device, requires_grad=True)
    out = torch.ones(4, HIDDEN, device=device)
    product = leaf * out
    scatter_embeddings(out, [make_rows(2, HIDDEN, torch.float32, device)], [0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_operations_under_another_default_device_give_the_same_rows(device):
    """Many programs set the default device to the GPU. The host's own tables must stay in host memory."""
    rows, weight = (make_rows(n, HIDDEN, torch.float32, device).requires_grad_() for n in (2, 5))
    out, ids = torch.zeros(4, HIDDEN, device=device), torch.ones(4, dtype=torch.int64, device=device)
    with torch.device("meta"):
        with torch.no_grad():
            scatter_embeddings(out, [rows], [1])
            built = embed_tokens(ids, weight, [rows], [1], text_scale=3.0)
        embed_tokens(ids, weight, [rows], [1], text_scale=3.0).sum().backward()
    assert same_bits(out[1:3], rows.detach())
    assert same_bits(built[1:3], rows.detach())
    assert same_bits(built[0], 3 * weight.detach()[1])
    assert same_bits(weight.grad[1], torch.full((HIDDEN,), 6.0, device=device))
    assert same_bits(rows.grad, torch.ones_like(rows))


def test_scatter_in_inference_mode_writes_the_rows(device):
    with torch.inference_mode():
        out = poisoned(4, HIDDEN, dtype=torch.float32, device=device)
        rows = make_rows(4, HIDDEN, torch.float32, device)
        assert same_bits(scatter_embeddings(out, [rows], [0]), rows)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32], ids=str)
def test_embed_tokens_writes_text_rows_and_image_rows(device, dtype, ids_dtype):
    weight = make_rows(50, HIDDEN, dtype, device)
    ids = torch.randint(0, 50, (14,), dtype=ids_dtype, device=device)
    ids[3:7] = 10**9
    items, spans = (
        [make_rows(6, HIDDEN, dtype, device), make_rows(1, HIDDEN, dtype, device)],
        [Span(3, 4, 2), 13],
    )
    ids[13] = -5
    expected, _ = expected_scatter(weight[ids.long().clamp(0, 49)], items, spans)
    assert same_bits(embed_tokens(ids, weight, items, spans), expected)
    out = poisoned(14, HIDDEN, dtype=dtype, device=device)
    assert embed_tokens(ids, weight, items, spans, out=out) is out
    assert same_bits(out, expected)


def test_embed_tokens_of_batch_keeps_its_shape_and_zeroes_deepstack_at_text(device):
    weight = make_rows(50, HIDDEN, torch.bfloat16, device)
    ids = torch.randint(0, 50, (2, 5), device=device)
    rows = make_rows(3, 3 * HIDDEN, torch.bfloat16, device)
    deepstack = poisoned(2, 10, HIDDEN, dtype=torch.bfloat16, device=device)
    out = embed_tokens(ids, weight, [rows], [4], deepstack=deepstack)
    expected, expected_deepstack = expected_scatter(weight[ids], [rows], [4], torch.zeros_like(deepstack))
    assert same_bits(out, expected)
    assert same_bits(deepstack, expected_deepstack)


@pytest.mark.parametrize("target", FLOAT_DTYPES, ids=str)
def test_embed_tokens_text_scale_is_rounded_to_the_weight_dtype(device, target):
    weight = make_rows(20, HIDDEN, torch.bfloat16, device)
    ids = torch.randint(0, 20, (9,), device=device)
    rows = make_rows(2, HIDDEN, torch.bfloat16, device)
    out = poisoned(9, HIDDEN, dtype=target, device=device)
    embed_tokens(ids, weight, [rows], [1], out=out, text_scale=HIDDEN**0.5, scale=0.3)
    text = (weight[ids] * torch.tensor(HIDDEN**0.5, dtype=torch.bfloat16)).to(target)
    text[1:3] = (rows.float() * 0.3).to(target)
    assert same_bits(out, text)


def test_embed_tokens_bad_text_id_on_the_cpu_is_refused():
    weight = make_rows(10, HIDDEN, torch.float32)
    out = poisoned(4, HIDDEN, dtype=torch.float32)
    for bad in (10, -1):
        ids = torch.tensor([0, 99, bad, 2])
        with pytest.raises(IndexError, match=rf"input_ids\[2\] is {bad}, the weight has 10 rows"):
            embed_tokens(ids, weight, [make_rows(1, HIDDEN, torch.float32)], [1], out=out)
        assert out.isnan().all()


def test_embed_tokens_bad_ids_weight_or_out_is_refused(device):
    weight = make_rows(10, HIDDEN, torch.float32, device)
    ids = torch.zeros(4, dtype=torch.int64, device=device)
    for error, message, arguments in [
        (TypeError, "input_ids are torch.float32", (ids.float(), weight)),
        (ValueError, "input_ids have 3 dimensions", (ids.view(1, 2, 2), weight)),
        (TypeError, "weight is torch.float64", (ids, weight.double())),
        (ValueError, "weight has 1 dimensions", (ids, weight[0])),
        (ValueError, "input_ids are on meta, weight is on", (ids.to("meta"), weight)),
    ]:
        with pytest.raises(error, match=message):
            embed_tokens(*arguments, [], [])
    with pytest.raises(TypeError, match="out must be a tensor, got list"):
        embed_tokens(ids, weight, [], [], out=[1])
    with pytest.raises(ValueError, match=r"out has shape \(5, 24\), it must be \(4, 24\)"):
        embed_tokens(ids, weight, [], [], out=torch.empty(5, HIDDEN, device=device))


@settings(deadline=None)
@given(st.data())
def test_operations_any_placement_equals_a_loop_over_rows(data):
    num_tokens = data.draw(st.integers(0, 30))
    cuts = sorted(data.draw(st.sets(st.integers(0, num_tokens), max_size=8)) | {0, num_tokens})
    pieces = [piece for piece in pairwise(cuts) if data.draw(st.booleans())]
    pieces = data.draw(st.permutations(pieces))
    dtypes = [data.draw(st.sampled_from(FLOAT_DTYPES)) for _ in range(3)]
    items = [make_rows(31, 5, dtype) for dtype in dtypes]
    spans = [[], [], []]
    for first, last in pieces:
        length = data.draw(st.integers(0, last - first))
        spans[data.draw(st.integers(0, 2))].append(
            Span(first, length, data.draw(st.integers(0, 31 - length)))
        )
    out = poisoned(num_tokens, 5, dtype=data.draw(st.sampled_from(FLOAT_DTYPES)))
    expected, _ = expected_scatter(out, items, spans)
    assert same_bits(scatter_embeddings(out, items, spans), expected)
    weight, ids = make_rows(7, 5, out.dtype), torch.randint(0, 7, (num_tokens,))
    expected, _ = expected_scatter(weight[ids], items, spans)
    assert same_bits(embed_tokens(ids, weight, items, spans), expected)


def test_operations_scale_beyond_a_float_is_a_value_error_that_names_it(device):
    out, rows = torch.zeros(2, 3, device=device), torch.ones(1, 3, device=device)
    with pytest.raises(
        ValueError, match=r"^scale is 2\*\*1328 or more, which is beyond the range of a float$"
    ):
        scatter_embeddings(out, [rows], [0], scale=10**400)
    ids = torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=r"^text_scale is -2\*\*1328 or more, which is beyond the range"):
        embed_tokens(ids, rows, [rows], [0], text_scale=-(10**400))
