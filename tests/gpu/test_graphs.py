"""CUDA graphs: a replay reads the current table, and a table that a replay reads is not updated."""

import threading

import pytest
import torch
from caches import make_cache
from placement_cases import expected_scatter, make_rows, poisoned, same_bits

from vitcache import PlacementTable, Span, embed_tokens, scatter_embeddings
from vitcache.placement import dispatch

HIDDEN = 64


@pytest.fixture(autouse=True)
def through_kernels(gpu, monkeypatch):
    if gpu.dry:
        monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)


def test_replay_after_an_update_places_the_new_rows_at_the_new_spans(gpu):
    rows = make_rows(6, HIDDEN, torch.bfloat16, gpu.device)
    out = poisoned(16, HIDDEN, dtype=torch.bfloat16, device=gpu.device)
    table = PlacementTable(12, device=gpu.device).update([rows], [3])
    replay = gpu.graph(lambda: scatter_embeddings(out, table, None))
    more = make_rows(9, HIDDEN, torch.bfloat16, gpu.device)
    for items, spans in [
        ([rows], [3]),
        ([more], [[Span(10, 5, 2), Span(0, 2, 0)]]),
        ([], []),
        ([rows, more], [0, Span(7, 3, 6)]),
    ]:
        gpu.synchronize()
        table.update(items, spans)
        rows.copy_(make_rows(6, HIDDEN, torch.bfloat16, gpu.device))
        out.fill_(float("nan"))
        expected, _ = expected_scatter(out, items, spans)
        replay()
        gpu.synchronize()
        assert same_bits(out, expected)


def test_replay_of_embed_tokens_reads_changed_ids_and_the_updated_table(gpu):
    weight = make_rows(30, HIDDEN, torch.bfloat16, gpu.device)
    ids = torch.zeros(12, dtype=torch.int64, device=gpu.device)
    out = poisoned(12, HIDDEN, dtype=torch.bfloat16, device=gpu.device)
    deepstack = poisoned(2, 12, HIDDEN, dtype=torch.bfloat16, device=gpu.device)
    table = PlacementTable(12, device=gpu.device).update(
        [make_rows(3, 3 * HIDDEN, torch.bfloat16, gpu.device)], [0]
    )
    replay = gpu.graph(lambda: embed_tokens(ids, weight, table, None, out=out, deepstack=deepstack))
    for start in (0, 4, 9):
        gpu.synchronize()
        items = [make_rows(3, 3 * HIDDEN, torch.bfloat16, gpu.device)]
        table.update(items, [start])
        ids.copy_(torch.randint(0, 30, (12,)))
        expected, levels = expected_scatter(weight[ids], items, [start], torch.zeros_like(deepstack))
        replay()
        gpu.synchronize()
        assert same_bits(out, expected)
        assert same_bits(deepstack, levels)


def test_capture_places_a_lease_that_another_stream_wrote(gpu):
    cache = make_cache(width=HIDDEN, dtype=torch.bfloat16, page_rows=4, device=gpu.device)
    rows = make_rows(3, HIDDEN, torch.bfloat16, gpu.device)
    out = poisoned(8, HIDDEN, dtype=torch.bfloat16, device=gpu.device)
    gpu.synchronize()
    with gpu.stream():
        gpu.slow(20)
        assert cache.put(bytes(32), rows)
    with cache.get(bytes(32)) as lease:
        table = PlacementTable(4, device=gpu.device).update([lease], [2])
        replay = gpu.graph(lambda: scatter_embeddings(out, table, None))
        out.fill_(float("nan"))
        replay()
        gpu.synchronize()
        assert same_bits(out[2:5], rows)


def test_update_during_a_replay_raises_and_leaves_the_table_unchanged(gpu):
    rows = make_rows(2, HIDDEN, torch.bfloat16, gpu.device)
    out = torch.zeros(8, HIDDEN, dtype=torch.bfloat16, device=gpu.device)
    table = PlacementTable(4, device=gpu.device).update([rows], [0])
    replay = gpu.graph(lambda: scatter_embeddings(out, table, None))
    gpu.synchronize()
    table.update([rows], [1])
    gpu.slow(100)
    replay()
    if gpu.dry:
        table.update([rows], [2])
    else:
        with pytest.raises(RuntimeError, match="work that reads this table is in flight"):
            table.update([rows], [2])
    gpu.synchronize()
    assert same_bits(out[1:3], rows)
    table.update([rows], [4])
    replay()
    gpu.synchronize()
    assert same_bits(out[4:6], rows)


def test_capture_beside_placements_of_another_thread_is_not_broken(gpu):
    """The placements query whether tables and pinned rows were read; a capture allows these queries."""
    rows = make_rows(2, HIDDEN, torch.bfloat16)
    pinned = rows if gpu.dry else rows.pin_memory()
    beside = torch.zeros(4, HIDDEN, dtype=torch.bfloat16, device=gpu.device)
    values, failed = torch.zeros(10, device=gpu.device), []
    ready, stop = threading.Event(), threading.Event()  # ready: the first placement has allocated its table

    def place_until_stopped() -> None:
        try:
            with gpu.stream():
                while not stop.is_set():
                    scatter_embeddings(beside, [pinned], [1])
                    ready.set()
        except Exception as error:
            failed.append(error)
            ready.set()

    gpu.synchronize()
    thread = threading.Thread(target=place_until_stopped)
    thread.start()
    ready.wait()
    try:
        replay = gpu.graph(lambda: values.add_(1))
    finally:
        stop.set()
        thread.join()
    assert not failed
    before = float(values[0])
    replay()
    gpu.synchronize()
    assert float(values[0]) == before + 1
    assert same_bits(beside[1:3].cpu(), rows)


def test_capture_before_warm_up_raises_and_after_it_loads_nothing(gpu):
    hidden = 72  # no other test has loaded kernels of this width
    rows = make_rows(2, hidden, torch.bfloat16, gpu.device)
    out = poisoned(4, hidden, dtype=torch.bfloat16, device=gpu.device)
    table = PlacementTable(4, device=gpu.device).update([rows], [1])
    if not gpu.dry:
        with (
            pytest.raises(RuntimeError, match=r"PlacementTable\.warm_up"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            scatter_embeddings(out, table, None)
        gpu.synchronize()
        assert out.isnan().all()
    table.warm_up(out)
    if gpu.dry:
        scatter_embeddings(out, table, None)
    else:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):  # with no call before it
            scatter_embeddings(out, table, None)
        graph.replay()
    gpu.synchronize()
    assert same_bits(out[1:3], rows)


def test_capture_beside_the_first_launch_of_another_thread_is_not_broken(gpu):
    """The load of a module is forbidden while any thread captures, unless its thread is in relaxed mode."""
    hidden = 88  # no other test has loaded kernels of this width
    rows = make_rows(2, hidden, torch.bfloat16, gpu.device)
    beside = poisoned(4, hidden, dtype=torch.bfloat16, device=gpu.device)
    values, failed = torch.zeros(10, device=gpu.device), []

    def place() -> None:
        try:
            with gpu.stream():
                scatter_embeddings(beside, [rows], [1])
        except Exception as error:
            failed.append(error)

    def capture() -> None:
        values.add_(1)
        if gpu.dry or torch.cuda.is_current_stream_capturing():
            thread = threading.Thread(target=place)
            thread.start()
            thread.join()

    gpu.synchronize()
    replay = gpu.graph(capture)
    assert not failed
    before = float(values[0])
    replay()
    gpu.synchronize()
    assert float(values[0]) == before + 1
    assert same_bits(beside[1:3], rows)


def test_capture_of_a_placement_without_a_table_raises(gpu):
    rows = make_rows(2, HIDDEN, torch.bfloat16, gpu.device)
    out = torch.zeros(4, HIDDEN, dtype=torch.bfloat16, device=gpu.device)
    scatter_embeddings(out, [rows], [1])
    assert same_bits(out[1:3], rows)
    if gpu.dry:
        return
    with (
        pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        scatter_embeddings(out, [rows], [1])
