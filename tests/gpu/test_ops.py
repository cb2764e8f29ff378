"""`scatter_embeddings` and `embed_tokens` on a GPU: large sizes, streams, pinned rows, gradients."""

import numpy as np
import pytest
import torch
from caches import make_cache
from placement_cases import expected_scatter, make_rows, poisoned, same_bits

from vitcache import Span, embed_tokens, scatter_embeddings
from vitcache.placement import calibration, dispatch, host_blocks
from vitcache.placement.table_memory import table_memory_of


@pytest.fixture(autouse=True)
def through_kernels(gpu, monkeypatch):
    """Make the public functions launch the kernels in a dry run, too. Triton interprets them."""
    if gpu.dry:
        monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)


def prompt(gpu, items, rows, hidden, dtype=torch.bfloat16):
    embeddings = [make_rows(rows, hidden, dtype, gpu.device) for _ in range(items)]
    starts = [3 + item * (rows + 2) for item in range(items)]
    return embeddings, starts, items * (rows + 2) + 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_scatter_writes_every_row_bit_for_bit_and_nothing_else(gpu, dtype):
    (items, rows), hidden = gpu.size((9, 880), (2, 4)), 4096
    embeddings, starts, num_tokens = prompt(gpu, items, rows, hidden, dtype)
    out = poisoned(num_tokens, hidden, dtype=dtype, device=gpu.device)
    scatter_embeddings(out, embeddings, starts)
    for start, item in zip(starts, embeddings, strict=True):
        assert same_bits(out[start : start + rows], item)
    assert int(out.isnan().all(dim=1).sum()) == num_tokens - items * rows


def test_embed_tokens_writes_text_and_rows_bit_for_bit(gpu):
    (items, rows, vocabulary), hidden = gpu.size((64, 256, 262_208), (2, 4, 31)), 3840
    embeddings, starts, num_tokens = prompt(gpu, items, rows, hidden)
    # The device makes the weight: the CPU needs longer for a billion random numbers than for all tests here.
    weight = torch.randn(vocabulary, hidden, dtype=torch.bfloat16, device=gpu.device)
    ids = torch.randint(0, vocabulary, (num_tokens,), device=gpu.device)
    expected = weight[ids]
    for start, item in zip(starts, embeddings, strict=True):
        expected[start : start + rows] = item
        ids[start : start + rows] = -7
    assert same_bits(embed_tokens(ids, weight, embeddings, starts), expected)
    packed = np.array([(start, rows, rows * item) for item, start in enumerate(starts)])
    assert same_bits(embed_tokens(ids, weight, torch.cat(embeddings), packed), expected)


def test_scatter_into_more_than_2_to_the_31_elements_writes_both_ends(gpu):
    num_tokens, hidden = gpu.size(560_000, 40), 4096
    out = torch.zeros(num_tokens, hidden, dtype=torch.bfloat16, device=gpu.device)
    rows = make_rows(8, hidden, torch.bfloat16, gpu.device)
    scatter_embeddings(out, [rows, rows], [0, num_tokens - 8])
    assert same_bits(out[:8], rows)
    assert same_bits(out[-8:], rows)
    assert not out[8:-8].any()


def test_placements_behind_a_slow_stream_do_not_block_the_host(gpu):
    embeddings, starts, num_tokens = prompt(gpu, 4, 6, 64)
    weight = torch.zeros(9, 64, dtype=torch.bfloat16, device=gpu.device)
    ids = torch.zeros(num_tokens, dtype=torch.int64, device=gpu.device)
    out = torch.zeros(num_tokens, 64, dtype=torch.bfloat16, device=gpu.device)

    def place():
        scatter_embeddings(out, embeddings, starts)
        embed_tokens(ids, weight, embeddings, starts, out=out, text_scale=2.0)

    place()  # CUDA loads the kernels at their first launch
    gpu.synchronize()
    with gpu.no_host_sync():
        gpu.slow(100)
        place()
        assert gpu.is_behind(gpu.current_stream())


def test_scatter_on_a_side_stream_reads_rows_after_their_slow_producer(gpu):
    source = make_rows(6, 64, torch.bfloat16, gpu.device)
    rows = torch.zeros_like(source)
    out = poisoned(8, 64, dtype=torch.bfloat16, device=gpu.device)
    gpu.synchronize()
    with gpu.stream():
        gpu.slow(50)
        rows.copy_(source)
        scatter_embeddings(out, [rows], [1])
        rows.zero_()
    gpu.synchronize()
    assert same_bits(out[1:7], source)


def test_scatter_reads_pinned_host_rows_in_place(gpu):
    rows = make_rows(5, 64, torch.bfloat16)
    pinned = rows if gpu.dry else rows.pin_memory()
    out = poisoned(9, 64, dtype=torch.bfloat16, device=gpu.device)
    scatter_embeddings(out, [pinned], [[Span(0, 2, 3), Span(5, 3, 0)]])
    expected, _ = expected_scatter(
        poisoned(9, 64, dtype=torch.bfloat16), [rows], [[Span(0, 2, 3), Span(5, 3, 0)]]
    )
    assert same_bits(out.cpu(), expected)


def test_scatter_of_pinned_rows_is_equal_for_long_blocks_and_fragments(gpu, monkeypatch):
    monkeypatch.setattr(host_blocks, "measured_crossovers", {})
    device = torch.empty(0, device=gpu.device).device
    if gpu.dry:
        calibration.calibrate(device, lambda size: size / 50e3, lambda size: 5 + size / 55e3)
    else:
        calibration.calibrate_cuda(device)
    assert device in host_blocks.measured_crossovers
    num_rows, hidden = gpu.size(20_000, 12), 4096
    rows = make_rows(num_rows, hidden, torch.bfloat16)
    pinned = rows if gpu.dry else rows.pin_memory()
    out = poisoned(num_rows + 5, hidden, dtype=torch.bfloat16, device=gpu.device)
    middle = num_rows // 2
    scatter_embeddings(out, [pinned, pinned], [[Span(0, middle, 0)], [Span(middle + 3, 2, 7)]])
    gpu.synchronize()
    assert same_bits(out[:middle].cpu(), rows[:middle])
    assert same_bits(out[middle + 3 : middle + 5].cpu(), rows[7:9])
    assert out[middle : middle + 3].isnan().all()
    assert out[middle + 5 :].isnan().all()


@pytest.mark.parametrize("form", ["tensor", "packed"])
def test_scatter_of_pinned_deepstack_rows_is_equal_by_copies_and_by_the_kernel(gpu, monkeypatch, form):
    num_rows, hidden = gpu.size(3000, 12), 4096
    device = torch.empty(0, device=gpu.device).device
    rows = make_rows(num_rows, 3 * hidden, torch.bfloat16)
    pinned = rows if gpu.dry else rows.pin_memory()
    for crossovers in (host_blocks.Crossovers(None, None), host_blocks.Crossovers(1, 1)):
        monkeypatch.setattr(host_blocks, "measured_crossovers", {device: crossovers})
        out = poisoned(num_rows + 5, hidden, dtype=torch.bfloat16, device=gpu.device)
        placed = num_rows if form == "packed" else num_rows + 5
        levels = poisoned(2, placed, hidden, dtype=torch.bfloat16, device=gpu.device)
        options = {"deepstack_rows" if form == "packed" else "deepstack": levels}
        scatter_embeddings(out, [pinned], [[Span(4, num_rows - 1, 1), Span(0, 1, 0)]], **options)
        gpu.synchronize()
        first = 1 if form == "packed" else 4
        for plane, columns, start in zip(
            (out, *levels), rows.split(hidden, 1), (4, first, first), strict=True
        ):
            assert same_bits(plane[start : start + num_rows - 1].cpu(), columns[1:])
            assert same_bits(plane[:1].cpu(), columns[:1])


def test_scatter_keeps_pinned_rows_alive_without_the_caller_s_reference(gpu):
    rows = make_rows(5, 64, torch.bfloat16)
    out = poisoned(5, 64, dtype=torch.bfloat16, device=gpu.device)
    gpu.slow(50)
    scatter_embeddings(out, [rows if gpu.dry else rows.pin_memory()], [0])
    overwrite = [torch.zeros(5, 64, dtype=torch.bfloat16, pin_memory=not gpu.dry) for _ in range(8)]
    gpu.synchronize()
    assert same_bits(out.cpu(), rows)
    assert len(overwrite) == 8


def test_scatter_of_transposed_pinned_rows_is_accepted(gpu):
    columns = make_rows(64, 5, torch.bfloat16)
    pinned = (columns if gpu.dry else columns.pin_memory()).t()
    out = poisoned(5, 64, dtype=torch.bfloat16, device=gpu.device)
    scatter_embeddings(out, [pinned], [0])
    assert same_bits(out.cpu(), columns.t().contiguous())


def test_scatter_of_a_lease_to_another_device_is_refused(gpu):
    cache = make_cache(1, 1, width=64, dtype=torch.bfloat16, page_rows=4, device=gpu.device)
    for key in (b"a" * 32, b"b" * 32):
        gpu.slow(20)
        assert cache.put(key, make_rows(4, 64, torch.bfloat16, gpu.device))
    with cache.get(b"a" * 32) as host, cache.get(b"b" * 32) as device:
        if gpu.dry:
            assert host.device == device.device == torch.device("cpu")
            return
        for lease in (host, device):
            with pytest.raises(
                ValueError, match="item 0 is a lease of a cache on cuda:0, the destination is on cpu"
            ):
                scatter_embeddings(torch.zeros(4, 64, dtype=torch.bfloat16), [lease], [0])


def test_scatter_of_pageable_host_rows_to_the_device_is_refused(gpu):
    if gpu.dry:
        rows, out, where = torch.zeros(2, 64, device="meta"), torch.zeros(4, 64), "on meta"
    else:
        rows, out, where = torch.zeros(2, 64), torch.zeros(4, 64, device=gpu.device), "on cpu and not pinned"
    with pytest.raises(ValueError, match=f"item 0 is {where}, the destination is on"):
        scatter_embeddings(out, [rows], [0])


def test_scatter_mixes_leases_of_both_tiers_with_fresh_rows(gpu):
    cache = make_cache(2, 4, width=64, dtype=torch.bfloat16, page_rows=4, device=gpu.device)
    rows = [make_rows(7, 64, torch.bfloat16, gpu.device) for _ in range(3)]
    for key, values in zip((b"a" * 32, b"b" * 32), rows, strict=False):
        assert cache.put(key, values)
    assert cache.stats().demotions == 1
    out = poisoned(30, 64, dtype=torch.bfloat16, device=gpu.device)
    with cache.get(b"a" * 32) as host, cache.get(b"b" * 32) as device:
        scatter_embeddings(out, [host, device, rows[2]], [2, [Span(10, 3, 4)], 20])
    spans = [2, [Span(10, 3, 4)], 20]
    expected, _ = expected_scatter(poisoned(30, 64, dtype=torch.bfloat16, device=gpu.device), rows, spans)
    assert same_bits(out, expected)
    cache.check_integrity()


def test_table_memory_of_each_stream_is_its_own(gpu):
    device = torch.empty(0, device=gpu.device).device
    current = table_memory_of(device)
    with gpu.stream():
        side = table_memory_of(device)
    assert table_memory_of(device) is current
    assert (side is current) is gpu.dry


def test_tables_of_queued_launches_are_not_overwritten(gpu):
    """The host writes more tables than fit a table block before the device reads the first table."""
    calls, rows = gpu.size((40, 4096), (3, 4))
    source = make_rows(rows, 64, torch.bfloat16, gpu.device)
    outs = [poisoned(rows, 64, dtype=torch.bfloat16, device=gpu.device) for _ in range(calls)]
    scatter_embeddings(outs[0], [source], [0])
    gpu.slow(100)
    for out in outs:
        scatter_embeddings(out, [source], [0])
    gpu.synchronize()
    assert all(same_bits(out, source) for out in outs)


def test_scatter_backward_on_the_device_gives_the_gradients(gpu):
    base = torch.randn(9, 64, device=gpu.device, requires_grad=True)
    rows = torch.randn(4, 64, device=gpu.device, requires_grad=True)
    out = scatter_embeddings(base * 1, [rows], [Span(3, 2, 1)])
    out.sum().backward()
    expected = torch.zeros(4, 64, device=gpu.device)
    expected[1:3] = 1
    assert torch.equal(rows.grad, expected)
    assert base.grad[3:5].abs().sum() == 0
    assert (base.grad[[0, 1, 2, 5, 6, 7, 8]] == 1).all()
