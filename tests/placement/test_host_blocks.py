"""The copy engine copies long blocks of host rows, the kernel reads fragments. Together they place all rows.

On the CPU the tests declare every row a host row, and copy through the stand-in for the CUDA runtime, so that
the code takes the path of a GPU. Triton interprets the kernel.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from caches import make_cache
from machine import CpuEvent
from placement_cases import expected_scatter, make_rows, poisoned, same_bits
from torch import Tensor

from vitcache import CudaError, Span, _native, embed_tokens, scatter_embeddings
from vitcache.device import stand_in as stand_in_library
from vitcache.placement import calibration, dispatch, host_blocks
from vitcache.placement.destination import Destination
from vitcache.placement.host_blocks import Crossovers
from vitcache.placement.placement import Placement
from vitcache.placement.table_memory import table_memory_of
from vitcache.testing import stand_in
from vitcache.testing.stand_in import Call

CPU = torch.device("cpu")
DTYPE = torch.bfloat16
HIDDEN = 64
ROW_BYTES = 2 * HIDDEN
FOUR_ROWS = Crossovers(4 * ROW_BYTES, 4 * ROW_BYTES)


@pytest.fixture(autouse=True)
def host_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Declare every source to be in host memory, and set the CPU's crossovers to four rows.

    The native reader adds no item, so that each item passes through the patched methods.
    """
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("with a CUDA device, kernels are compiled and cannot take CPU tensors")
    stand_in.reset()
    engine = _native.CopyEngine(stand_in_library.open_runtime(), 0)
    monkeypatch.setattr(host_blocks, "copy_engine", lambda device: engine)
    monkeypatch.setattr(host_blocks, "ROW_WIDTH", ROW_BYTES)
    monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)
    monkeypatch.setattr(host_blocks, "measured_crossovers", {CPU: FOUR_ROWS})

    class HostPlacement(_native.Placement):
        def set_source(self, *description: Any) -> None:
            super().set_source(*description[:-1], True)

        def set_paged_rows(self, item: int, rows: Any, on_host: bool) -> None:
            super().set_paged_rows(item, rows, True)

    monkeypatch.setattr("vitcache.placement.placement._native.Placement", HostPlacement)
    monkeypatch.setattr(
        "vitcache.placement.placement._reader", SimpleNamespace(add=lambda native, items, first, *_: first)
    )
    yield
    stand_in.reset()


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The runs of tokens that the copy engine writes, as (first token, number of tokens)."""
    copied: list[tuple[int, int]] = []
    copy_host_blocks = host_blocks.copy_host_blocks

    def tokens(placement: Placement) -> set[int]:
        return {
            token for _, start, length, _ in placement.native.runs() for token in range(start, start + length)
        }

    def copy_and_record(destination: Destination, placement: Placement, *options: Any) -> Any:
        before = tokens(placement)
        pending = copy_host_blocks(destination, placement, *options)
        for token in sorted(before - tokens(placement)):
            if copied and sum(copied[-1]) == token:
                copied[-1] = copied[-1][0], copied[-1][1] + 1
            else:
                copied.append((token, 1))
        return pending

    monkeypatch.setattr("vitcache.placement.gpu_kernels.copy_host_blocks", copy_and_record)
    return copied


class InstantEvent:
    """A CUDA event that the test's device reaches when the stand-in has executed all work."""

    def __init__(self, enable_timing: bool) -> None:
        self.enable_timing = enable_timing

    def record(self) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        synchronize()

    def elapsed_time(self, end: InstantEvent) -> float:
        return 1.0


def synchronize() -> None:
    """Wait for the stand-in's default stream, which is the current stream of the CPU."""
    assert ctypes.CDLL(stand_in_library.path()).cudaStreamSynchronize(None) == 0


def scatter_and_compare(items: Any, rows: Any, spans: Any, **options: Any) -> None:
    out = poisoned(30, HIDDEN, dtype=DTYPE)
    expected, _ = expected_scatter(out, rows, spans, scale=options.get("scale"))
    scatter_embeddings(out, items, spans, **options)
    synchronize()
    assert same_bits(out, expected)


def test_scatter_copies_runs_from_the_crossover_on_and_reads_shorter_runs(copies):
    items = [make_rows(9, HIDDEN, DTYPE) for _ in range(2)]
    scatter_and_compare(items, items, [[Span(0, 4, 2), Span(10, 3, 0)], [Span(20, 6, 3)]])
    assert copies == [(0, 4), (20, 6)]


def test_scatter_queues_one_batch_on_a_side_stream_between_two_events() -> None:
    items = [make_rows(9, HIDDEN, DTYPE) for _ in range(2)]
    out = poisoned(30, HIDDEN, dtype=DTYPE)
    with stand_in.recorded_calls() as calls:
        scatter_embeddings(out, items, [[Span(0, 4, 2), Span(10, 3, 0)], [Span(20, 6, 3)]])
    assert calls == [
        Call("cudaEventRecord", stream=0, event=0),
        Call("cudaStreamWaitEvent", stream=1, event=0),
        Call("cudaMemcpyBatchAsync", stream=1, bytes=10 * ROW_BYTES, copies=2),
        Call("cudaEventRecord", stream=1, event=1),
        Call("cudaStreamWaitEvent", stream=0, event=1),
    ]
    assert calls[0].handle == 0, "the first stream is not the current stream"
    synchronize()


def test_scatter_launches_its_kernel_before_it_waits_for_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(8, HIDDEN, DTYPE)
    out = poisoned(20, HIDDEN, dtype=DTYPE)
    with stand_in.paused():
        scatter_embeddings(out, [rows], [[Span(0, 5, 3), Span(10, 3, 0)]])
        assert same_bits(out[10:13], rows[:3]), "the kernel waits for the copies"
        assert out[:5].isnan().all()
    synchronize()
    assert same_bits(out[:5], rows[3:])


def join_adjacent(pages: list[int]) -> list[tuple[int, int]]:
    """(Position of the first page, number of pages) of each block of adjacent pages."""
    blocks: list[tuple[int, int]] = []
    for position, page in enumerate(pages):
        if position and page == pages[position - 1] + 1:
            blocks[-1] = blocks[-1][0], blocks[-1][1] + 1
        else:
            blocks.append((position, 1))
    return blocks


def test_scatter_lease_joins_adjacent_pages_into_one_block(copies):
    cache = make_cache(6, width=HIDDEN, dtype=DTYPE)
    keys = [bytes([number]) * 32 for number in range(3)]
    for key in keys:
        assert cache.put(key, make_rows(2, HIDDEN, DTYPE))
    # A look-up with another length drops the entry. The next entry gets its page and three adjacent ones.
    assert cache.get(keys[1], num_rows=1) is None
    rows = make_rows(8, HIDDEN, DTYPE)
    assert cache.put(b"x" * 32, rows)
    with cache.get(b"x" * 32) as lease:
        blocks = join_adjacent(lease.pages)
        assert 1 < len(blocks) < 4, "the test needs some adjacent pages and a gap"
        scatter_and_compare([lease], [rows], [5])
    assert copies == [(5 + 2 * first, 2 * count) for first, count in blocks if count >= 2]


def test_scatter_with_scale_or_cast_copies_no_block(copies):
    rows = make_rows(8, HIDDEN, DTYPE)
    scatter_and_compare([rows], [rows], [0], scale=0.5)
    scatter_and_compare([rows.float()], [rows.float()], [0])
    assert copies == []


def test_scatter_copies_strided_rows_by_one_2d_copy(copies):
    wide = make_rows(8, 2 * HIDDEN, DTYPE)
    with stand_in.recorded_calls() as calls:
        scatter_and_compare([wide[:, :HIDDEN]], [wide[:, :HIDDEN].clone()], [0])
    assert [call for call in calls if call.copies] == [
        Call("cudaMemcpy2DAsync", stream=1, bytes=8 * ROW_BYTES, copies=8)
    ]
    strided = poisoned(30, 2 * HIDDEN, dtype=DTYPE)
    scatter_embeddings(strided[:, :HIDDEN], [wide[:, :HIDDEN]], [3])
    synchronize()
    assert same_bits(strided[3:11, :HIDDEN].contiguous(), wide[:, :HIDDEN].contiguous())
    assert strided[:, HIDDEN:].isnan().all()
    assert copies == [(0, 8), (3, 8)]


def test_scatter_of_rows_narrower_than_measured_copies_no_plane(copies, monkeypatch) -> None:
    monkeypatch.setattr(host_blocks, "ROW_WIDTH", ROW_BYTES + 1)
    wide = make_rows(8, 2 * HIDDEN, DTYPE)
    scatter_and_compare([wide[:, :HIDDEN]], [wide[:, :HIDDEN].clone()], [0])
    rows = make_rows(8, HIDDEN, DTYPE)
    scatter_and_compare([rows], [rows], [20])
    assert copies == [(20, 8)]


@pytest.mark.parametrize("form", ["tensor", "list", "packed"])
def test_scatter_copies_the_planes_of_deepstack_rows(copies, form: str) -> None:
    """The first item is copied, but for its last two rows; the kernel reads these and the second item."""
    rows = [make_rows(8, 3 * HIDDEN, DTYPE), make_rows(2, 3 * HIDDEN, DTYPE)]
    spans = [[Span(9, 6, 0), Span(1, 2, 6)], [Span(4, 2)]]
    tokens = [*range(9, 15), 1, 2, 4, 5]
    ranks = [sorted(tokens).index(token) for token in tokens]
    out = poisoned(20, HIDDEN, dtype=DTYPE)
    levels = poisoned(2, 10 if form == "packed" else 20, HIDDEN, dtype=DTYPE)
    name, given = {
        "tensor": ("deepstack", levels),
        "list": ("deepstack", list(levels)),
        "packed": ("deepstack_rows", levels),
    }[form]
    with stand_in.recorded_calls() as calls:
        scatter_embeddings(out, rows, spans, **{name: given})
    synchronize()
    together = torch.cat(rows)
    for plane, columns in zip((out, *levels), together.split(HIDDEN, dim=1), strict=True):
        places = tokens if plane is out or form != "packed" else ranks
        assert same_bits(plane[places], columns)
        others = [row for row in range(len(plane)) if row not in places]
        assert plane[others].isnan().all()
    assert copies == [(9, 6)]
    assert [call for call in calls if call.copies] == 3 * [
        Call("cudaMemcpy2DAsync", stream=1, bytes=6 * ROW_BYTES, copies=6)
    ]


def test_embed_tokens_keeps_the_rows_of_copied_blocks(copies):
    weight, rows = make_rows(9, HIDDEN, DTYPE), make_rows(8, HIDDEN, DTYPE)
    ids = torch.randint(0, 9, (20,))
    spans = [[Span(2, 5, 1), Span(10, 2, 6)]]
    expected, _ = expected_scatter(weight[ids], [rows], spans)
    embedded = embed_tokens(ids, weight, [rows], spans)
    synchronize()
    assert same_bits(embedded, expected)
    assert copies == [(2, 5)]


@pytest.mark.parametrize("form", ["tensor", "packed"])
def test_embed_tokens_keeps_copied_deepstack_rows_and_zeroes_those_of_text(copies, form: str) -> None:
    weight, rows = make_rows(9, HIDDEN, DTYPE), make_rows(8, 2 * HIDDEN, DTYPE)
    ids = torch.randint(0, 9, (20,))
    spans = [[Span(2, 5, 1), Span(10, 2, 6)]]
    level = poisoned(1, 7 if form == "packed" else 20, HIDDEN, dtype=DTYPE)
    name = "deepstack_rows" if form == "packed" else "deepstack"
    embedded = embed_tokens(ids, weight, [rows], spans, **{name: level})
    synchronize()
    image = [2, 3, 4, 5, 6, 10, 11]
    assert same_bits(embedded[image], rows[1:, :HIDDEN])
    text = [token for token in range(20) if token not in image]
    assert same_bits(embedded[text], weight[ids[text]])
    assert same_bits(level[0] if form == "packed" else level[0, image], rows[1:, HIDDEN:])
    if form == "tensor":
        assert not level[0, text].any()
    assert copies == [(2, 5)]


def test_scatter_without_calibration_copies_no_block(copies, monkeypatch):
    monkeypatch.setattr(host_blocks, "measured_crossovers", {})
    rows = make_rows(20, HIDDEN, DTYPE)
    scatter_and_compare([rows], [rows], [3])
    assert copies == []


def test_scatter_whose_copy_fails_raises_and_orders_the_stream() -> None:
    rows = make_rows(8, HIDDEN, DTYPE)
    stand_in.fail("cudaMemcpyBatchAsync")
    with stand_in.recorded_calls() as calls, pytest.raises(CudaError, match="cudaMemcpyBatchAsync"):
        scatter_embeddings(poisoned(30, HIDDEN, dtype=DTYPE), [rows], [0])
    assert [call.entry for call in calls][-2:] == ["cudaEventRecord", "cudaStreamWaitEvent"]


@pytest.mark.parametrize(
    ("entry", "nth"),
    [("cudaMemcpy2DAsync", 2), ("cudaStreamWaitEvent", 2)],
    ids=["a later copy fails", "the wait for the copies fails"],
)
def test_scatter_whose_copy_or_wait_fails_keeps_pinned_rows_alive(entry, nth, monkeypatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(
        "vitcache.placement.gpu_kernels._keep_pinned_alive",
        lambda placement, device: kept.extend(placement.items),
    )
    items = [make_rows(8, 2 * HIDDEN, DTYPE)[:, :HIDDEN] for _ in range(2)]
    out = poisoned(30, HIDDEN, dtype=DTYPE)  # alive until the copies have written it
    stand_in.fail(entry, nth)
    with pytest.raises(CudaError, match=entry):
        scatter_embeddings(out, items, [0, 10])
    synchronize()
    assert [item.data_ptr() for item in kept] == [item.data_ptr() for item in items]


def test_scatter_whose_launch_fails_orders_the_stream_behind_the_copies(monkeypatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no launch")

    monkeypatch.setattr("vitcache.placement.gpu_kernels.launch_scatter_rows", fail)
    rows = make_rows(8, HIDDEN, DTYPE)
    out = poisoned(30, HIDDEN, dtype=DTYPE)  # alive until the copies have written it
    with stand_in.recorded_calls() as calls, pytest.raises(RuntimeError, match="no launch"):
        scatter_embeddings(out, [rows], [[Span(0, 5), Span(9, 2, 5)]])
    assert calls[-1] == Call("cudaStreamWaitEvent", stream=0, event=1)
    synchronize()


@pytest.mark.parametrize(
    ("setup_us", "expected"),
    [(0.0, calibration.SIZES[0]), (1000.0, None), (4.0, 1 << 20)],
    ids=["always", "never", "meets"],
)
def test_calibrate_finds_the_smallest_size_that_copies_faster_once(setup_us, expected, monkeypatch):
    monkeypatch.setattr(host_blocks, "measured_crossovers", {})

    def kernel_us(size: int) -> float:  # 44 GB/s
        return calibration.TOTAL_BYTES / 44e3

    def copy_us(size: int) -> float:  # a setup time for each copy, and 55 GB/s
        return calibration.TOTAL_BYTES * (setup_us / size + 1 / 55e3)

    found = calibration.calibrate(CPU, kernel_us, copy_us)
    assert found == Crossovers(expected, None)
    assert host_blocks.crossover_bytes(CPU) == expected
    assert calibration.calibrate(CPU, lambda size: 0.0, lambda size: 1.0) == found, "measured twice"


def test_calibrate_finds_the_crossovers_of_blocks_and_of_rows_apart(monkeypatch) -> None:
    monkeypatch.setattr(host_blocks, "measured_crossovers", {})
    smallest = {"blocks": 1 << 18, "rows": 1 << 21}
    found = calibration.calibrate(
        CPU,
        lambda size: 10.0,
        lambda size: 9.0 if size >= smallest["blocks"] else 11.0,
        lambda size: 10.0 if size >= smallest["rows"] else 10.1,
    )
    assert found == Crossovers(**smallest)


@pytest.mark.parametrize(("planes", "size"), [(1, 1 << 20), (1, 1 << 24), (2, 1 << 22)])
def test_calibration_times_queued_copies_of_64_mib_in_one_native_call(planes: int, size: int) -> None:
    pinned = torch.zeros(calibration.TOTAL_BYTES, dtype=torch.uint8)
    pinned[:: 1 << 16] = torch.arange(1024, dtype=torch.uint8)
    target = torch.full_like(pinned, 255)
    destination, items, spans = calibration.pieces(pinned, target, planes, size)
    placement = Placement(destination, items, spans)
    with stand_in.recorded_calls() as calls:
        calibration.run_copies(destination, placement, size)
    synchronize()
    num_copies = calibration.TOTAL_BYTES // size
    copied = [call for call in calls if call.copies]
    assert sum(call.bytes for call in copied) == 64 << 20
    assert {call.stream for call in copied} == {1}
    if planes == 1:
        assert [call.copies for call in copied] == [num_copies]
        assert torch.equal(target, pinned)
    else:
        assert [call.entry for call in copied] == num_copies * ["cudaMemcpy2DAsync"]
        rows = pinned.view(-1, planes, calibration.ROW_WIDTH)
        assert torch.equal(target.view(planes, -1, calibration.ROW_WIDTH), rows.transpose(0, 1))
    assert [call.entry for call in calls if not call.copies] == 2 * ["cudaEventRecord", "cudaStreamWaitEvent"]


def test_calibrate_cuda_frees_its_pinned_memory_and_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with fakes of the CUDA calls, few bytes, and a launch that keeps the rows alive."""
    monkeypatch.setattr(host_blocks, "measured_crossovers", {})
    monkeypatch.setattr(calibration, "TOTAL_BYTES", 1 << 16)
    monkeypatch.setattr(calibration, "SIZES", [1 << 14, 1 << 15])
    monkeypatch.setattr(calibration, "open_cuda_runtime", stand_in_library.open_runtime)

    class Event(CpuEvent):
        def synchronize(self) -> None:
            synchronize()

    for name, fake in {
        "device": lambda device: nullcontext(),
        "Event": lambda enable_timing: Event(),
        "_sleep": lambda cycles: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    allocated: list[weakref.ref[Tensor]] = []

    def allocate(num_bytes: int, device: torch.device, runtime: _native.CudaRuntime) -> Tensor:
        memory = torch.zeros(num_bytes, dtype=torch.uint8)
        allocated.append(weakref.ref(memory.untyped_storage()))
        return memory

    def run_kernel(destination: Destination, placement: Placement, size: int) -> None:
        table_memory_of(CPU).keep_alive(list(placement.added_items))

    monkeypatch.setattr(calibration, "allocate_pinned", allocate)
    monkeypatch.setattr(calibration, "run_kernel", run_kernel)
    measured = calibration.calibrate_cuda(CPU)
    assert set(measured) <= {None, 1 << 14, 1 << 15}
    assert calibration.calibrate_cuda(CPU) is measured
    assert len(allocated) == 1
    is_freed = allocated[0]() is None  # pytest would print all bytes of the memory
    assert is_freed
