"""The copy engine copies long blocks of host rows, the kernel reads fragments. Together they place all rows.

On the CPU the tests declare every row a host row, so that the code takes the path of a GPU.
"""

from types import SimpleNamespace

import pytest
import torch
from caches import make_cache
from placement_cases import expected_scatter, make_rows, poisoned, same_bits

from vitcache import Span, _native, embed_tokens, scatter_embeddings
from vitcache.placement import calibration, dispatch, host_blocks

HIDDEN = 64
ROW_BYTES = 2 * HIDDEN


@pytest.fixture(autouse=True)
def host_rows(monkeypatch):
    """Declare every source to be in host memory, and set the CPU's crossover to four rows.

    The native reader adds no item, so that each item passes through the patched methods.
    """
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("with a CUDA device, kernels are compiled and cannot take CPU tensors")
    monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)
    monkeypatch.setattr(host_blocks, "measured_crossovers", {torch.device("cpu"): 4 * ROW_BYTES})

    class HostPlacement(_native.Placement):
        def set_source(self, *description):
            super().set_source(*description[:-1], True)

        def set_paged_rows(self, item, rows, on_host):
            super().set_paged_rows(item, rows, True)

    monkeypatch.setattr("vitcache.placement.placement._native.Placement", HostPlacement)
    monkeypatch.setattr(
        "vitcache.placement.placement._reader", SimpleNamespace(add=lambda native, items, first, *_: first)
    )


@pytest.fixture
def copies(monkeypatch):
    """The copied blocks, as (token, number of rows)."""
    copied = []
    original = host_blocks.copy_host_blocks

    class Spy:
        def __init__(self, native):
            self.native = native

        def __getattr__(self, name):
            return getattr(self.native, name)

        def take_host_blocks(self, *arguments):
            blocks = self.native.take_host_blocks(*arguments)
            copied.extend((token, rows) for _, _, token, rows in blocks)
            return blocks

    def copy_and_record(destination, placement, scale):
        placement.native = Spy(placement.native)
        original(destination, placement, scale)

    monkeypatch.setattr("vitcache.placement.gpu_kernels.copy_host_blocks", copy_and_record)
    return copied


def scatter_and_compare(items, rows, spans, **options):
    out = poisoned(30, HIDDEN, dtype=torch.bfloat16)
    expected, _ = expected_scatter(out, rows, spans, scale=options.get("scale"))
    assert same_bits(scatter_embeddings(out, items, spans, **options), expected)


def test_scatter_copies_runs_from_the_crossover_on_and_reads_shorter_runs(copies):
    items = [make_rows(9, HIDDEN, torch.bfloat16) for _ in range(2)]
    scatter_and_compare(items, items, [[Span(0, 4, 2), Span(10, 3, 0)], [Span(20, 6, 3)]])
    assert copies == [(0, 4), (20, 6)]


def join_adjacent(pages):
    """(Position of the first page, number of pages) of each block of adjacent pages."""
    blocks = []
    for position, page in enumerate(pages):
        if position and page == pages[position - 1] + 1:
            blocks[-1][1] += 1
        else:
            blocks.append([position, 1])
    return [tuple(block) for block in blocks]


def test_scatter_lease_joins_adjacent_pages_into_one_block(copies):
    cache = make_cache(6, width=HIDDEN, dtype=torch.bfloat16)
    keys = [bytes([number]) * 32 for number in range(3)]
    for key in keys:
        assert cache.put(key, make_rows(2, HIDDEN, torch.bfloat16))
    # A look-up with another length drops the entry. The next entry gets its page and three adjacent ones.
    assert cache.get(keys[1], num_rows=1) is None
    rows = make_rows(8, HIDDEN, torch.bfloat16)
    assert cache.put(b"x" * 32, rows)
    with cache.get(b"x" * 32) as lease:
        blocks = join_adjacent(lease.pages)
        assert 1 < len(blocks) < 4, "the test needs some adjacent pages and a gap"
        scatter_and_compare([lease], [rows], [5])
    assert copies == [(5 + 2 * first, 2 * count) for first, count in blocks if count >= 2]


def test_scatter_with_scale_cast_strides_or_deepstack_copies_no_block(copies):
    rows, wide = make_rows(8, HIDDEN, torch.bfloat16), make_rows(8, 2 * HIDDEN, torch.bfloat16)
    scatter_and_compare([rows], [rows], [0], scale=0.5)
    scatter_and_compare([rows.float()], [rows.float()], [0])
    scatter_and_compare([wide[:, :HIDDEN]], [wide[:, :HIDDEN].clone()], [0])
    deepstack = poisoned(1, 30, HIDDEN, dtype=torch.bfloat16)
    scatter_embeddings(poisoned(30, HIDDEN, dtype=torch.bfloat16), [wide], [0], deepstack=deepstack)
    assert same_bits(deepstack[0, :8], wide[:, HIDDEN:].contiguous())
    strided = poisoned(30, 2 * HIDDEN, dtype=torch.bfloat16)[:, :HIDDEN]
    assert same_bits(scatter_embeddings(strided, [rows], [0])[:8].contiguous(), rows)
    assert copies == []


def test_embed_tokens_keeps_the_rows_of_copied_blocks(copies):
    weight, rows = make_rows(9, HIDDEN, torch.bfloat16), make_rows(8, HIDDEN, torch.bfloat16)
    ids = torch.randint(0, 9, (20,))
    spans = [[Span(2, 5, 1), Span(10, 2, 6)]]
    expected, _ = expected_scatter(weight[ids], [rows], spans)
    assert same_bits(embed_tokens(ids, weight, [rows], spans), expected)
    assert copies == [(2, 5)]


def test_scatter_without_calibration_copies_no_block(copies, monkeypatch):
    monkeypatch.setattr(host_blocks, "measured_crossovers", {})
    rows = make_rows(20, HIDDEN, torch.bfloat16)
    scatter_and_compare([rows], [rows], [3])
    assert copies == []


@pytest.mark.parametrize(
    ("setup_us", "expected"),
    [(0.0, calibration.SIZES[0]), (1000.0, None), (4.0, 1 << 20)],
    ids=["always", "never", "meets"],
)
def test_calibrate_finds_the_smallest_size_that_copies_faster_once(setup_us, expected, monkeypatch):
    monkeypatch.setattr(host_blocks, "measured_crossovers", {})
    device = torch.device("cpu")
    # A copy engine with a setup time and 55 GB/s, a kernel with 44 GB/s.
    found = calibration.calibrate(device, lambda size: size / 44e3, lambda size: setup_us + size / 55e3)
    assert found == expected
    assert host_blocks.crossover_bytes(device) == expected
    assert calibration.calibrate(device, lambda size: 0.0, lambda size: 1.0) == expected, "measured twice"
