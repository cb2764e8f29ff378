"""Launches that both store and place rows, compared with two separate steps."""

import pytest
import torch
from caches import make_cache
from pairwise import pairwise
from placement_cases import FLOAT_DTYPES, make_rows, poisoned, same_bits

import vitcache
from vitcache import Span
from vitcache.placement import dispatch
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement

pytestmark = pytest.mark.triton

gpu_kernels = pytest.importorskip("vitcache.placement.gpu_kernels")
embed_rows, scatter_rows = gpu_kernels.embed_rows, gpu_kernels.scatter_rows

PAGE_ROWS = 4


@pytest.fixture
def device(kernel_device):
    return kernel_device


def run_both(launch, device, stored, items, spans, hidden, *, levels=0, tokens=13, target=torch.bfloat16):
    """Compare one launch that stores and places rows with two steps: `write_stores`, then the launch.

    Every second item is stored. Returns the planes and the pages of the one launch.
    """
    results = []
    width = hidden * (1 + levels)
    for is_one_step in (True, False):
        cache = make_cache(16, width=width, dtype=stored, page_rows=PAGE_ROWS, device=device)
        deepstack = poisoned(levels, tokens, hidden, dtype=target, device=device) if levels else None
        destination = Destination("out", poisoned(tokens, hidden, dtype=target, device=device), deepstack)
        store = [
            None if number % 2 else cache.reserve(bytes([number]) * 32, len(rows))
            for number, rows in enumerate(items)
        ]
        for reservation in store[::2]:
            for page in reservation.segments():
                page.fill_(float("nan"))
        placement = Placement(destination, items, spans, store)
        if not is_one_step:
            placement.write_stores()
        launch(destination, placement)
        pages = [torch.cat(reservation.segments()) for reservation in store[::2]]
        results.append([destination.rows, *([] if deepstack is None else [deepstack]), *pages])
        for reservation in store[::2]:
            assert reservation.commit()
        cache.check_integrity()
    for one_step, two_steps in zip(*results, strict=True):
        assert same_bits(one_step, two_steps)
    return results[0]


@pairwise(source=FLOAT_DTYPES, stored=FLOAT_DTYPES, scale=[None, 0.37])
def test_scatter_with_store_places_the_rounded_rows(device, source, stored, scale):
    items = [make_rows(rows, 40, source, device) for rows in (7, 3, 2)]
    items[0][4, :3] = torch.tensor([float("inf"), -0.0, 1e-30]).to(source)
    spans = [[Span(1, 2, 3), Span(8, 2, 4)], 4, []]
    run_both(lambda d, p: scatter_rows(d, p, scale), device, stored, items, spans, 40)


@pytest.mark.parametrize("hidden", [1, 31, 32, 4097])
def test_scatter_with_store_width_below_at_or_above_the_block_stores_whole_rows(device, hidden):
    items = [make_rows(5, hidden, torch.bfloat16, device)]
    out, pages = run_both(
        lambda d, p: scatter_rows(d, p, None), device, torch.bfloat16, items, [Span(2, 2, 1)], hidden
    )
    assert same_bits(pages, items[0])
    assert same_bits(out[2:4], items[0][1:3])


@pytest.mark.parametrize("source", FLOAT_DTYPES, ids=str)
def test_embed_with_store_stores_rows_outside_the_spans(device, source):
    weight = make_rows(9, 32, torch.bfloat16, device)
    ids = torch.randint(0, 9, (13,), device=device)
    items = [make_rows(rows, 96, source, device) for rows in (6, 2, 3)]
    spans = [Span(11, 2, 1), 3, []]
    out, levels, *pages = run_both(
        lambda d, p: embed_rows(d, ids, weight, p, None, None),
        device,
        torch.bfloat16,
        items,
        spans,
        32,
        levels=2,
    )
    assert not out.isnan().any()
    assert not levels.isnan().any()
    assert same_bits(pages[1], items[2].bfloat16())


def test_embed_with_store_sources_of_several_dtypes_equals_two_steps(device):
    weight = make_rows(9, 24, torch.bfloat16, device)
    ids = torch.randint(0, 9, (13,), device=device)
    items = [make_rows(3, 24, dtype, device) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)]
    items.append(make_rows(2, 24, torch.float16, device))
    run_both(
        lambda d, p: embed_rows(d, ids, weight, p, 0.5, 2.0),
        device,
        torch.float16,
        items,
        [0, [Span(4, 2, 1)], [Span(8, 1, 2)], 10],
        24,
    )


def test_scatter_embeddings_with_store_on_kernels_stores_in_the_launch(device, monkeypatch):
    monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)
    monkeypatch.setattr(Placement, "write_stores", None)
    cache = make_cache(2, width=16, dtype=torch.bfloat16, page_rows=PAGE_ROWS, device=device)
    rows = make_rows(5, 16, torch.float32, device)
    out = poisoned(6, 16, dtype=torch.bfloat16, device=device)
    with cache.reserve(bytes(32), 5) as reservation:
        vitcache.scatter_embeddings(out, [rows], [Span(1, 3, 2)], store=[reservation])
        assert reservation.commit()
    with cache.get(bytes(32), num_rows=5) as lease:
        assert same_bits(lease.to_tensor(), rows.bfloat16())
    assert same_bits(out[1:4], rows[2:].bfloat16())
