"""The bench `tiers`: its results have the schema, and a contender with wrong rows gets no number."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitcache import DiskTier
from vitcache.bench import plot, run
from vitcache.bench.claims import bench_tiers, tier_reads
from vitcache.bench.claims.bench_tiers import CASES
from vitcache.bench.claims.tier_opening import EXISTS, OPENED, STATS, OpenCase
from vitcache.bench.claims.tier_overhead import EMPTY, ENCODE, WRITING, OverheadCase
from vitcache.bench.claims.tier_overhead import WITHOUT as NO_TIER
from vitcache.bench.claims.tier_reads import CACHE, RAW, RAW_TWO, TIER, RawFiles, ReadCase
from vitcache.bench.claims.tier_restart import EACH, KEPT, SECOND_HIT, WITHOUT, RestartCase
from vitcache.bench.claims.tier_waits import FETCH, OPEN, TIMED, WaitCase
from vitcache.bench.claims.tier_waits import WITHOUT as NO_TIERS
from vitcache.tiers import FetchOutcome, Transfer

CONTENDERS = {
    "fetch_gb_per_s": {RAW, RAW_TWO, TIER, CACHE},
    "store_gb_per_s": {RAW, TIER},
    "past_deadline_us": {FETCH, TIMED},
    "refused_us": {OPEN, NO_TIERS},
    "step_us": {ENCODE, NO_TIER, EMPTY, WRITING},
    "open_us": {OPENED},
    "exists_us": {EXISTS, STATS},
    "turn_ms": {KEPT, WITHOUT, SECOND_HIT, EACH},
    "encodes": {KEPT, WITHOUT, SECOND_HIT, EACH},
}
Rows = list[dict[str, Any]]


def run_bench(directory: Path) -> tuple[int, Rows]:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    code = run.run(parser.parse_args(["--cases", "smoke", "--out", str(directory), "--bench", "tiers"]))
    return code, [row for path in directory.glob("*.json") for row in json.loads(path.read_text())]


def only(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """Leave out all cases of other kinds."""
    monkeypatch.setitem(CASES, "smoke", [case for case in CASES["smoke"] if isinstance(case, kind)])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """The folder and the rows of one run of all smoke cases."""
    directory = tmp_path_factory.mktemp("results")
    code, rows = run_bench(directory)
    assert code == 0
    return directory, rows


def test_tiers_bench_measures_each_part_with_all_its_contenders(results: tuple[Path, Rows]) -> None:
    _, rows = results
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["metric"], set()).add(row["contender"])
    assert found == CONTENDERS
    assert {row["case"] for row in rows} == {case.name for case in CASES["smoke"]}
    assert all(row["target"] is None and row["meets_target"] is None for row in rows)
    moved = {row["bytes"] for row in rows if row["metric"].endswith("gb_per_s")}
    assert moved == {2 * 16 * 256 * 2}


def test_tiers_bench_restart_with_a_disk_encodes_fewer_images(results: tuple[Path, Rows]) -> None:
    encodes = {row["contender"]: row["value"] for row in results[1] if row["metric"] == "encodes"}
    assert (encodes[KEPT], encodes[WITHOUT]) == (1, 3)
    assert encodes[EACH] <= encodes[SECOND_HIT] <= encodes[WITHOUT]


def test_tiers_bench_full_cases_have_the_targets_of_the_design() -> None:
    judged: dict[type, Any] = {}
    for case in CASES["full"]:
        if not isinstance(case, RestartCase):
            assert case.is_judged
        judged.setdefault(type(case), []).append(case)
    assert [case.name for case in judged[ReadCase]] == ["1 x 7.21 MB", "8 x 7.21 MB", "4 x 28.8 MB"]
    assert [(case.keys, case.is_open) for case in judged[WaitCase]] == [
        *((1, False), (32, False), (1, True), (32, True))
    ]
    assert [case.entries for case in judged[OpenCase]] == [100_000]
    assert [case.encode_ms >= 20 for case in judged[OverheadCase]] == [True]


@pytest.mark.parametrize(
    ("owner", "method", "name"), [(DiskTier, "fetch", TIER), (RawFiles, "read", RAW)], ids=["tier", "raw"]
)
def test_tiers_bench_contender_that_reads_wrong_bytes_gets_no_number(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    owner: type,
    method: str,
    name: str,
) -> None:
    def flip(self: Any, fetches: Sequence[Transfer] = ()) -> list[FetchOutcome]:
        parts = [part for fetch in fetches for part in fetch.parts] or self._parts
        for part in parts:
            np.copyto(part, 0)
        return [FetchOutcome.HIT] * len(fetches)

    monkeypatch.setattr(owner, method, flip)
    only(monkeypatch, ReadCase)
    code, rows = run_bench(tmp_path)
    assert (code, rows) == (1, [])
    assert f"{name} read other bytes than were stored" in capsys.readouterr().err


def test_tiers_bench_judged_case_on_a_file_system_without_direct_io_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CASES, "smoke", [ReadCase(1, 16, 256, is_judged=True)])
    metrics = DiskTier.metrics
    monkeypatch.setattr(DiskTier, "metrics", lambda self: {**metrics(self), "direct": 0})
    code, rows = run_bench(tmp_path)
    assert (code, rows) == (1, [])
    assert "refuses direct I/O; set TMPDIR" in capsys.readouterr().err


def test_plot_of_the_tiers_bench_gives_a_png_file_with_a_claim(results: tuple[Path, Rows]) -> None:
    pytest.importorskip("matplotlib")
    directory, rows = results
    (path,) = directory.glob("*.json")
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")
    title = " ".join(plot.draw(rows).get_suptitle().split())
    assert title.startswith("A disk tier reads at")
    assert "past its deadline" in title


def test_aligned_memory_begins_at_a_page() -> None:
    memory = tier_reads.aligned(5000)
    assert memory.nbytes == 5000
    assert memory.flags.writeable
    assert memory.__array_interface__["data"][0] % 4096 == 0


def test_tiers_bench_is_a_bench_of_the_cpu() -> None:
    assert run.BENCHES["tiers"] is bench_tiers
    assert "tiers" not in run.names_for("cuda")
