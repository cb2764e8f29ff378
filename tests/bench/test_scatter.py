"""The bench `scatter`: new and used leases, host pages with and without a promotion, bytes and targets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import vitcache
from vitcache.bench.chats.contenders import Scene, slice_loop
from vitcache.bench.claims import bench_placement, bench_scatter, placement_sources
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import PLACEMENT_CASES, PlacementCase
from vitcache.bench.harness.timing import Sample, Timer

CPU = torch.device("cpu")
CASE = PLACEMENT_CASES["smoke"][1]  # with two deepstack levels


def run_scatter(directory: Path) -> list[dict[str, Any]]:
    recorder = Recorder("scatter", directory, CPU)
    list(bench_scatter.run_case(CASE, recorder, Timer(CPU, 2)))
    return recorder.rows


def test_scatter_bench_takes_new_leases_before_each_call_and_never_while_it_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    seen: dict[str, list[Any]] = {}
    scatter, get_many = vitcache.scatter_embeddings, vitcache.EmbeddingCache.get_many

    def record_call(out: Any, embeddings: Any, *args: Any, **options: Any) -> Any:
        events.append("call")
        seen.setdefault(current[0], []).append(embeddings)
        return scatter(out, embeddings, *args, **options)

    def record_get(cache: Any, *args: Any) -> Any:
        events.append("get")
        return get_many(cache, *args)

    monkeypatch.setattr(vitcache, "scatter_embeddings", record_call)
    monkeypatch.setattr(vitcache.EmbeddingCache, "get_many", record_get)
    recorder, current = Recorder("scatter", tmp_path, CPU), [""]
    for label in bench_scatter.run_case(CASE, recorder, Timer(CPU, 2)):
        current[0] = label
    # Two timers of five calls each, and the check before them; the lists are alive, so their ids differ.
    different = {
        name: len({id(lease) for leases in calls for lease in leases}) for name, calls in seen.items()
    }
    assert different[bench_scatter.NEW] == different[bench_scatter.HOST] == 11 * CASE.items
    assert different[bench_scatter.USED] == different[bench_scatter.PROMOTED] == CASE.items
    assert Counter(events)["call"] == 1 + 11 * len(bench_scatter.SOURCES)


def test_scatter_bench_rows_have_the_bytes_that_are_read_and_written(tmp_path: Path) -> None:
    rows = {row["contender"]: row for row in run_scatter(tmp_path) if row["metric"] == "device_us"}
    rows_bytes = CASE.items * CASE.rows * CASE.hidden * (1 + CASE.levels) * 2
    read_and_written = dict.fromkeys(rows, 2) | {bench_scatter.PROMOTED: 3, bench_scatter.STORED: 3}
    assert {name: row["bytes"] for name, row in rows.items()} == {
        name: times * rows_bytes for name, times in read_and_written.items()
    }


@pytest.mark.parametrize(
    ("source", "method", "message"),
    [
        (placement_sources.HostPages, "promote", "expected 0 promotions, got 1"),
        (placement_sources.NewLeases, "get", "expected 6 hits in the device tier, got 7"),
    ],
)
def test_source_whose_cache_did_other_work_gets_no_number(source: Any, method: str, message: str) -> None:
    made = source(Scene(CASE, CPU))
    made.before_call()
    if method == "promote":
        with made.cache.promote(made.embeddings[0]) as pages:
            pages.write(made.embeddings[0].to_tensor())
            assert pages.commit()
    else:
        made.cache.get(made.keys[0]).release()
    with pytest.raises(RuntimeError, match=f"{message}: the source gets no number"):
        made.check()
    made.close()


@pytest.mark.parametrize("source", [placement_sources.PromotedPages, placement_sources.TensorsAndPages])
def test_source_whose_launch_wrote_no_pages_gets_no_number(source: Any) -> None:
    made = source(Scene(CASE, CPU))
    for pages in made.store:
        for segment in pages.segments():
            segment.zero_()
    with pytest.raises(RuntimeError, match=r"expected 3 .* with the rows of their image, got 0"):
        made.check()
    made.close()


def test_promoted_source_without_free_device_pages_gets_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitcache.EmbeddingCache, "promote", lambda cache, lease: None)
    with pytest.raises(RuntimeError, match="expected 3 reservations for promotions, got 0"):
        placement_sources.PromotedPages(Scene(CASE, CPU))


def test_scatter_bench_targets_of_512_items_bind_for_new_and_for_used_leases() -> None:
    case = next(case for case in PLACEMENT_CASES["full"] if case.items == 512)
    targets = {name: bench_scatter.issue_target(name, case) for name in bench_scatter.SOURCES}
    assert {name: target for name, target in targets.items() if target} == {
        "packed": 45.0,
        "device-pages, new leases": 150.0,
        "device-pages, used leases": 150.0,
        "tensors": 300.0,
    }
    copy, pinned = Sample.of([10.0]), Sample.of([100.0])
    limits = {name: bench_scatter.limit_of(name, case, copy, pinned) for name in bench_scatter.SOURCES}
    assert limits["host-pages"] == ("pinned-copy", 100.0, 1 / 0.88, 0.0)
    assert limits["host-pages, promoted"] == ("pinned-copy", 100.0, None, 0.0)
    assert limits["tensors-and-pages"] == ("1.5 copies", 15.0, 1.02, 0.0)
    assert limits["tensors"] == limits["device-pages, new leases"] == ("copy", 10.0, 1.015, 2.0)


@pytest.mark.parametrize("case", PLACEMENT_CASES["smoke"], ids=lambda case: case.name)
def test_placement_limit_moves_as_many_bytes_as_a_build_reads_and_writes(
    case: PlacementCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that a build must read, token by token: a deepstack row of a text token is not read."""
    scene = Scene(case, CPU)
    out, deepstack = slice_loop(scene)
    written = out.numel() + (0 if deepstack is None else deepstack.numel())
    read = 0
    for is_image in scene.host_mask.tolist():
        read += scene.width if is_image else case.hidden
    copied: list[int] = []
    time_copy = bench_placement.time_copy

    def record_copy(moved_bytes: int, timer: Timer) -> Sample:
        copied.append(moved_bytes)
        return time_copy(moved_bytes, timer)

    monkeypatch.setattr(bench_placement, "time_copy", record_copy)
    recorder = Recorder("placement", tmp_path, CPU)
    list(bench_placement.run_case(case, recorder, Timer(CPU, 2)))
    assert copied == [2 * (read + written)]  # bfloat16
    assert {row["bytes"] for row in recorder.rows if row["metric"] == "device_us"} == set(copied)
