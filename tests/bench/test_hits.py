"""The bench `hits`: each named hit occurs in each step, or there is no number."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcache import EmbeddingCache
from vitcache.bench import plot, run
from vitcache.bench.claims import bench_hits
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer
from vitcache.cache.plan_leases import PlanLeases

[CASE] = bench_hits.CASES["smoke"]
CPU = torch.device("cpu")


def test_hits_bench_every_contender_has_a_ratio_to_its_limit(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    arguments = ["--bench", "hits", "--cases", "smoke", "--out", str(tmp_path)]
    assert run.run(parser.parse_args(arguments)) == 0
    [path] = tmp_path.glob("hits-*.json")
    rows = json.loads(path.read_text())
    assert {row["contender"]: row["ratio_to"] for row in rows} == {
        "copy": "copy",
        "pinned-copy": "pinned-copy",
        "device tier": "copy",
        "host tier, not promoted": "pinned-copy",
        "host tier, promoted": "pinned-copy",
        "device tier, keys computed": "copy",
    }
    assert {row["metric"] for row in rows} == {"hits_us"}
    pytest.importorskip("matplotlib")
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")


def test_hits_bench_each_step_promotes_all_or_none_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, list[int]] = {}
    step = bench_hits.Hits.step

    def count_promotions(side: bench_hits.Hits) -> torch.Tensor:
        before = side.cache.stats().promotions
        result = step(side)
        opened.setdefault(side.name, []).append(side.cache.stats().promotions - before)
        return result

    monkeypatch.setattr(bench_hits.Hits, "step", count_promotions)
    list(bench_hits.run_case(CASE, Recorder("hits", tmp_path, CPU), Timer(CPU, 3)))
    assert {name: set(counts) for name, counts in opened.items()} == {
        bench_hits.ON_DEVICE: {0},
        bench_hits.ON_HOST: {0},
        bench_hits.PROMOTED: {CASE.items},
        bench_hits.COMPUTED: {0},
    }
    assert {len(counts) for counts in opened.values()} == {
        1 + 2 + 3
    }  # the check, two rounds to warm up, three


@pytest.mark.parametrize("round_number", [2, 6])
def test_hits_bench_step_that_promotes_nothing_gets_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_number: int
) -> None:
    """As in a device tier without free pages. The last round is checked, too."""
    promote = PlanLeases.promote
    calls = iter(range(1, 100))

    def promote_all_but_once(leases: PlanLeases) -> Any:
        reservations = promote(leases)
        if reservations and next(calls) == round_number:
            for reservation in reservations.values():
                reservation.cancel()
            return {}
        return reservations

    monkeypatch.setattr(PlanLeases, "promote", promote_all_but_once)
    recorder = Recorder("hits", tmp_path, CPU)
    with pytest.raises(RuntimeError, match=r"host tier, promoted: expected .*'promotions': 3.* got .*: 0"):
        list(bench_hits.run_case(CASE, recorder, Timer(CPU, 3)))
    assert recorder.rows == []


def test_hits_bench_host_step_that_hits_a_promoted_entry_gets_no_number() -> None:
    with ExitStack() as stack:
        sides = bench_hits.open_sides(bench_hits.Inputs(CASE, CPU), stack)
        side = sides[bench_hits.ON_HOST]
        side.prepare()
        side.step()
        side.step()  # the second hit promotes
        with pytest.raises(RuntimeError, match="host tier, not promoted: expected"):
            side.check()
        assert isinstance(side.cache, EmbeddingCache)


def test_hits_bench_full_cases_judge_both_tiers() -> None:
    cases = bench_hits.CASES["full"]
    assert [(case.items, case.rows, case.hidden, case.levels) for case in cases] == [
        (32, 880, 4096, 0),
        (32, 880, 4096, 3),
    ]
    assert (bench_hits.JUDGED_IMAGES, bench_hits.DEVICE_HITS_MS) == (32, 1.0)
    assert bench_hits.HOST_HITS_MS == {0: 6.0, 3: 18.0}
