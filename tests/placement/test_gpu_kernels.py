"""The row kernels against the reference: compiled on a GPU, in Triton's interpreter on the CPU.

The tests call the launchers as `dispatch` does, so masks, addresses, casts and tables are those of a GPU.
"""

import pytest
import torch
from caches import make_cache
from pairwise import pairwise
from placement_cases import FLOAT_DTYPES, make_rows, poisoned, same_bits, untouched

import vitcache
from vitcache import Span
from vitcache.placement import reference
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement

pytestmark = pytest.mark.triton

gpu_kernels = pytest.importorskip("vitcache.placement.gpu_kernels")
embed_rows, scatter_rows = gpu_kernels.embed_rows, gpu_kernels.scatter_rows


@pytest.fixture
def device(kernel_device):
    return kernel_device


def run_both(kernel, run_reference, out, deepstack, embeddings, spans):
    """Run kernel and reference on clones of `out` and `deepstack`, compare, return the kernel's clones."""
    results = []
    for is_kernel in (True, False):
        rows, levels = out.clone(), None if deepstack is None else deepstack.clone()
        destination = Destination("out", rows, levels)
        placement = Placement(destination, embeddings, spans)
        if is_kernel:
            kernel(destination, placement)
        else:
            run_reference(destination, placement.segments(), placement.runs())
        results.append((rows, levels))
    (rows, levels), (expected_rows, expected_levels) = results
    assert same_bits(rows, expected_rows)
    assert levels is None or same_bits(levels, expected_levels)
    return rows, levels


def check_scatter(out, deepstack, embeddings, spans, scale=None):
    return run_both(
        lambda destination, placement: scatter_rows(destination, placement, scale),
        lambda d, items, runs: reference.scatter_embeddings(d.rows, d.deepstack, items, runs, scale),
        out,
        deepstack,
        embeddings,
        spans,
    )


def check_embed(out, deepstack, ids, weight, embeddings, spans, scale=None, text_scale=None):
    return run_both(
        lambda destination, placement: embed_rows(destination, ids, weight, placement, scale, text_scale),
        lambda d, items, runs: reference.embed_tokens(
            d.rows, d.deepstack, ids, weight, items, runs, scale, text_scale
        ),
        out,
        deepstack,
        embeddings,
        spans,
    )


def test_embed_tokens_strided_ids_look_up_the_right_rows(device, monkeypatch):
    monkeypatch.setattr("vitcache.placement.dispatch.uses_kernels", lambda device: True)
    weight, table = make_rows(50, 32, torch.bfloat16, device), torch.randint(0, 50, (5, 3), device=device)
    for ids in (table[:, 1], table[::2, :2], table[:1, :1].expand(2, 4)):
        assert same_bits(vitcache.embed_tokens(ids, weight, [], []), weight[ids])


@pytest.mark.parametrize("hidden", [1, 7, 8, 31, 32, 33, 4095, 4096, 4097])
def test_scatter_width_below_at_or_above_the_block_places_whole_rows(device, hidden):
    rows = make_rows(3, hidden, torch.bfloat16, device)
    out, _ = check_scatter(
        poisoned(6, hidden, dtype=torch.bfloat16, device=device), None, [rows], [Span(2, 2, 1)]
    )
    assert out.isnan().all(dim=1).tolist() == [True, True, False, False, True, True]


@pairwise(source=FLOAT_DTYPES, target=FLOAT_DTYPES, scale=[None, 0.37])
def test_scatter_casts_between_dtypes_round_to_nearest_even(device, source, target, scale):
    rows = make_rows(4, 64, source, device)
    rows[0, :4] = torch.tensor([float("inf"), float("-inf"), -0.0, 1e-30]).to(source)
    check_scatter(poisoned(5, 64, dtype=target, device=device), None, [rows], [1], scale)


def test_scatter_cast_of_nan_is_nan(device):
    # Rounding the last two as numbers would carry into the sign bit.
    bits = torch.tensor([0x7FC00000, 0x7F800001, -0x400000, -0x7FFFFF, 0x7FFFFFFF, -1], dtype=torch.int32)
    rows = bits.view(torch.float32).repeat(1, 8).to(device)
    out = torch.zeros(1, 48, dtype=torch.bfloat16, device=device)
    destination = Destination("out", out, None)
    scatter_rows(destination, Placement(destination, [rows], [0]), None)
    assert out.isnan().all()


def test_scatter_with_deepstack_writes_every_level(device):
    rows = make_rows(5, 4 * 48, torch.bfloat16, device)
    out, deepstack = poisoned(9, 48, dtype=torch.bfloat16), poisoned(3, 9, 48, dtype=torch.bfloat16)
    check_scatter(out.to(device), deepstack.to(device), [rows], [[Span(1, 2, 3), Span(6, 3, 0)]])


def test_scatter_sources_of_several_dtypes_and_alignments_equals_the_reference(device):
    items = [make_rows(2, 33, torch.float32, device), make_rows(3, 40, torch.bfloat16, device)[:, 3:36]]
    items.append(make_rows(1, 33, torch.float16, device))
    check_scatter(poisoned(8, 33, dtype=torch.bfloat16, device=device), None, items, [0, 3, 7])


def test_scatter_lease_reads_its_pages_in_order(device):
    cache = make_cache(6, width=16, dtype=torch.bfloat16, page_rows=4, device=device)
    rows = [make_rows(n, 16, torch.bfloat16, device) for n in (3, 9, 4)]
    keys = [bytes([i]) * 32 for i in range(3)]
    for key, values in zip(keys, rows, strict=True):
        assert cache.put(key, values)
    leases = [cache.get(key) for key in keys]
    out, _ = check_scatter(
        poisoned(20, 16, dtype=torch.bfloat16, device=device),
        None,
        leases,
        [0, [Span(5, 6, 2), Span(12, 1, 8)], 14],
    )
    assert same_bits(out[5:11], rows[1][2:8])


def test_kernels_offsets_beyond_32_bits_do_not_wrap(device):
    if device == "cuda":
        pytest.skip("uses unbacked host memory; tests/gpu tests this with GPU memory")
    far, hidden, levels = (1 << 31) + 16, 32, 2
    rows = make_rows(2, 3 * hidden, torch.bfloat16)
    out = untouched(far + hidden, torch.bfloat16).as_strided((2, hidden), (far, 1))
    deepstack = untouched(far + 2 * hidden, torch.bfloat16).as_strided((levels, 2, hidden), (far, hidden, 1))
    destination = Destination("out", out, deepstack)
    scatter_rows(destination, Placement(destination, [rows], [0]), None)
    assert same_bits(torch.cat([out, *deepstack], dim=1), rows)
    near = poisoned(2, hidden, dtype=torch.bfloat16)
    check_scatter(near, None, [out], [0])
    check_embed(near, None, torch.tensor([1, 0]), out, [], [])


def test_scatter_strided_destination_writes_its_columns_alone(device):
    wide = poisoned(6, 64, dtype=torch.float32, device=device)
    rows = make_rows(3, 20, torch.float32, device)
    destination = Destination("out", wide[:, 5:25], None)
    scatter_rows(destination, Placement(destination, [rows], [2]), None)
    assert same_bits(wide[2:5, 5:25].contiguous(), rows)
    assert int(wide.isnan().sum()) == wide.numel() - rows.numel()


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("hidden", [31, 32, 4097])
def test_embed_writes_every_token(device, ids_dtype, hidden):
    weight = make_rows(11, hidden, torch.bfloat16, device)
    ids = torch.randint(0, 11, (10,), dtype=ids_dtype, device=device)
    ids[2:5] = 2**30
    rows = make_rows(3, hidden, torch.bfloat16, device)
    out, _ = check_embed(
        poisoned(10, hidden, dtype=torch.bfloat16, device=device), None, ids, weight, [rows], [2]
    )
    assert not out.isnan().any()


def test_embed_with_deepstack_writes_zeros_at_text_tokens(device):
    weight, rows = make_rows(11, 32, torch.float16, device), make_rows(3, 96, torch.float16, device)
    ids = torch.randint(0, 11, (7,), device=device)
    out, deepstack = poisoned(7, 32, dtype=torch.float16), poisoned(2, 7, 32, dtype=torch.float16)
    _, levels = check_embed(out.to(device), deepstack.to(device), ids, weight, [rows], [Span(1, 2, 1)])
    assert (levels[:, [0, 3, 4, 5, 6]] == 0).all()


@pytest.mark.parametrize("source", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("target", FLOAT_DTYPES, ids=str)
def test_embed_with_scales_and_casts_equals_the_reference(device, source, target):
    weight, rows = make_rows(11, 40, torch.bfloat16, device), make_rows(3, 40, source, device)
    ids = torch.randint(0, 11, (6,), device=device)
    out = poisoned(6, 40, dtype=target, device=device)
    check_embed(out, None, ids, weight, [rows], [2], scale=1.3, text_scale=40**0.5)


def test_embed_sources_of_other_dtypes_than_the_weight_equals_the_reference(device):
    weight = make_rows(11, 24, torch.bfloat16, device)
    ids = torch.randint(0, 11, (9,), device=device)
    items = [make_rows(2, 24, dtype, device) for dtype in FLOAT_DTYPES]
    check_embed(poisoned(9, 24, dtype=torch.bfloat16, device=device), None, ids, weight, items, [0, 3, 6])
    check_embed(poisoned(9, 24, dtype=torch.float32, device=device), None, ids, weight, items[:1], [5])


def test_kernels_without_items_or_tokens_equal_the_reference(device):
    weight = make_rows(11, 24, torch.bfloat16, device)
    ids = torch.randint(0, 11, (4,), device=device)
    check_embed(poisoned(4, 24, dtype=torch.bfloat16, device=device), None, ids, weight, [], [])
    check_scatter(poisoned(4, 24, dtype=torch.bfloat16, device=device), None, [], [])
    check_embed(poisoned(0, 24, dtype=torch.bfloat16, device=device), None, ids[:0], weight, [], [])
