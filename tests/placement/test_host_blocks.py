"""Long blocks of host rows go through copies, fragments through the kernel: together, the same rows.

On the CPU every row is called a host row, so that the path is the one that a GPU takes.
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
    """The CPU plays a device whose every source, not read natively, is in host memory, with a known
    crossover.
    """
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("kernels take CPU tensors only where they are interpreted: where there is no CUDA device")
    monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)
    monkeypatch.setattr(host_blocks, "measured_crossovers", {torch.device("cpu"): 4 * ROW_BYTES})

    class HostPlacement(_native.Placement):
        def add_source(self, *description):
            super().add_source(*description[:-1], True)

        def add_paged_rows(self, rows, on_host):
            super().add_paged_rows(rows, True)

    monkeypatch.setattr("vitcache.placement.placement._native.Placement", HostPlacement)
    monkeypatch.setattr(
        "vitcache.placement.placement._reader", SimpleNamespace(add=lambda native, items, first, *_: first)
    )


@pytest.fixture
def copies(monkeypatch):
    """Blocks that went through copies, as (token, rows)."""
    seen = []
    original = host_blocks.copy_host_blocks

    class Spy:
        def __init__(self, native):
            self.native = native

        def __getattr__(self, name):
            return getattr(self.native, name)

        def take_host_blocks(self, *arguments):
            blocks = self.native.take_host_blocks(*arguments)
            seen.extend((token, rows) for _, _, token, rows in blocks)
            return blocks

    def spied(destination, placement, scale):
        placement.native = Spy(placement.native)
        original(destination, placement, scale)

    monkeypatch.setattr("vitcache.placement.gpu_kernels.copy_host_blocks", spied)
    return seen


def scatter_and_compare(items, truth, spans, **options):
    out = poisoned(30, HIDDEN, dtype=torch.bfloat16)
    expected, _ = expected_scatter(out, truth, spans, scale=options.get("scale"))
    assert same_bits(scatter_embeddings(out, items, spans, **options), expected)


def test_runs_as_long_as_the_crossover_are_copied_and_shorter_ones_are_read(copies):
    items = [make_rows(9, HIDDEN, torch.bfloat16) for _ in range(2)]
    scatter_and_compare(items, items, [[Span(0, 4, 2), Span(10, 3, 0)], [Span(20, 6, 3)]])
    assert copies == [(0, 4), (20, 6)]


def test_pages_that_are_adjacent_make_one_block(copies):
    cache = make_cache(6, width=HIDDEN, dtype=torch.bfloat16)
    keys = [bytes([number]) * 32 for number in range(3)]
    first, hole, last = (make_rows(n, HIDDEN, torch.bfloat16) for n in (2, 2, 8))
    for key, rows in zip(keys, (first, hole, make_rows(2, HIDDEN, torch.bfloat16)), strict=True):
        assert cache.put(key, rows)
    assert (
        cache.get(keys[1], num_rows=1) is None
    )  # gives its page back: the next entry has a gap between its pages
    assert cache.put(b"x" * 32, last)
    with cache.get(b"x" * 32) as lease:
        pages = sorted(lease.pages)
        assert pages != list(range(pages[0], pages[0] + 4)), "the pages must not be adjacent for this test"
        scatter_and_compare([lease], [last], [5])
    assert sum(rows for _, rows in copies) in (4, 6)


def test_what_a_copy_engine_cannot_do_is_left_to_the_kernel(copies):
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


def test_embed_tokens_leaves_copied_tokens_alone(copies):
    weight, rows = make_rows(9, HIDDEN, torch.bfloat16), make_rows(8, HIDDEN, torch.bfloat16)
    ids = torch.randint(0, 9, (20,))
    spans = [[Span(2, 5, 1), Span(10, 2, 6)]]
    expected, _ = expected_scatter(weight[ids], [rows], spans)
    assert same_bits(embed_tokens(ids, weight, [rows], spans), expected)
    assert copies == [(2, 5)]


def test_without_a_calibration_the_kernel_reads_all(copies, monkeypatch):
    monkeypatch.setattr(host_blocks, "measured_crossovers", {})
    rows = make_rows(20, HIDDEN, torch.bfloat16)
    scatter_and_compare([rows], [rows], [3])
    assert copies == []


@pytest.mark.parametrize(
    ("setup_us", "expected"),
    [(0.0, calibration.SIZES[0]), (1000.0, None), (4.0, 1 << 20)],
    ids=["always", "never", "meets"],
)
def test_the_crossover_is_where_copies_become_the_faster_ones(setup_us, expected, monkeypatch):
    monkeypatch.setattr(host_blocks, "measured_crossovers", {})
    device = torch.device("cpu")
    # A copy engine at 55 GB/s after some microseconds of setup, a kernel at 44 GB/s.
    found = calibration.calibrate(device, lambda size: size / 44e3, lambda size: setup_us + size / 55e3)
    assert found == expected
    assert host_blocks.crossover_bytes(device) == expected
    assert calibration.calibrate(device, lambda size: 0.0, lambda size: 1.0) == expected, "measured once"
