"""The bench `mooncake`: its results have the schema, and a contender with wrong rows gets no number."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitcache.bench import plot, run
from vitcache.bench.claims import store_waits
from vitcache.bench.claims.bench_mooncake import CASES, EMPTY, WRITING
from vitcache.bench.claims.store_lookups import EXISTS, LookupCase
from vitcache.bench.claims.store_lookups import RAW as RAW_LOOKUP
from vitcache.bench.claims.store_transfers import (
    CACHE,
    CONTIGUOUS,
    LOOKED_UP,
    PAGE_BYTES,
    SCATTERED,
    TIER,
    Pages,
    RawStore,
    TransferCase,
)
from vitcache.bench.claims.store_waits import StoppedCase
from vitcache.bench.claims.tier_overhead import ENCODE, OverheadCase
from vitcache.bench.claims.tier_overhead import WITHOUT as NO_TIER
from vitcache.bench.claims.tier_waits import FETCH, OPEN, TIMED
from vitcache.bench.claims.tier_waits import WITHOUT as NO_TIERS
from vitcache.tiers import FetchOutcome, Transfer

CONTENDERS = {
    "fetch_gb_per_s": {CONTIGUOUS, SCATTERED, TIER, CACHE},
    "store_gb_per_s": {CONTIGUOUS, SCATTERED, LOOKED_UP, TIER},
    "exists_us": {EXISTS, RAW_LOOKUP},
    "past_deadline_us": {FETCH, TIMED},
    "refused_us": {OPEN, NO_TIERS},
    "step_us": {ENCODE, NO_TIER, EMPTY, WRITING},
}
Rows = list[dict[str, Any]]


def run_bench(directory: Path) -> tuple[int, Rows]:
    pytest.importorskip("mooncake.store", exc_type=ImportError)
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    code = run.run(parser.parse_args(["--cases", "smoke", "--out", str(directory), "--bench", "mooncake"]))
    return code, [row for path in directory.glob("*.json") for row in json.loads(path.read_text())]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """The folder and the rows of one run of all smoke cases."""
    directory = tmp_path_factory.mktemp("results")
    code, rows = run_bench(directory)
    assert code == 0
    return directory, rows


def test_mooncake_bench_measures_each_part_with_all_its_contenders(results: tuple[Path, Rows]) -> None:
    _, rows = results
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["metric"], set()).add(row["contender"])
    assert found == CONTENDERS
    assert {row["case"] for row in rows} == {case.name for case in CASES["smoke"]}
    assert all(row["target"] is None and row["meets_target"] is None for row in rows)


def test_mooncake_bench_full_cases_have_the_targets_of_the_design() -> None:
    judged: dict[type, Any] = {}
    for case in CASES["full"]:
        assert case.is_judged
        judged.setdefault(type(case), []).append(case)
    assert [case.name for case in judged[TransferCase]] == ["1 x 7.21 MB", "8 x 7.21 MB", "4 x 28.8 MB"]
    assert [case.keys for case in judged[LookupCase]] == [1, 18, 32]
    assert [(case.keys, case.is_open) for case in judged[StoppedCase]] == [
        *((1, False), (32, False), (1, True), (32, True))
    ]
    assert [case.encode_ms >= 20 for case in judged[OverheadCase]] == [True]


@pytest.mark.parametrize(("method", "name"), [("fetch", TIER), ("get_pages", SCATTERED)], ids=["tier", "raw"])
def test_mooncake_bench_contender_that_reads_wrong_bytes_gets_no_number(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
    name: str,
) -> None:
    from vitcache import MooncakeTier

    def lie(self: Any, fetches: Sequence[Transfer] = ()) -> list[FetchOutcome]:
        return [FetchOutcome.HIT] * len(fetches)

    monkeypatch.setattr(MooncakeTier if method == "fetch" else RawStore, method, lie)
    monkeypatch.setitem(CASES, "smoke", [TransferCase(2, 16, 256)])
    code, rows = run_bench(tmp_path)
    assert (code, rows) == (1, [])
    assert f"{name} moved other bytes than were stored" in capsys.readouterr().err


def test_mooncake_bench_master_that_answers_gets_no_time_past_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store_waits, "stop", lambda pid: None)
    monkeypatch.setitem(CASES, "smoke", [StoppedCase(2, is_open=False)])
    code, rows = run_bench(tmp_path)
    assert (code, rows) == (1, [])
    assert "was not late" in capsys.readouterr().err


def test_pages_are_shuffled_and_have_the_bytes_of_the_entries() -> None:
    case = TransferCase(3, 300, 1024)
    pages, rows = Pages(case), np.arange(3 * case.entry_bytes, dtype=np.uint8)
    pages.fill(rows)
    assert np.array_equal(pages.scattered(), rows)
    assert [[part.nbytes for part in parts] for parts in pages.parts] == [
        [PAGE_BYTES, case.entry_bytes - PAGE_BYTES]
    ] * 3
    places = [part.__array_interface__["data"][0] for parts in pages.parts for part in parts]
    assert places != sorted(places)
    assert len(set(places)) == len(places)


def test_plot_of_the_mooncake_bench_gives_a_png_file_with_a_claim(results: tuple[Path, Rows]) -> None:
    pytest.importorskip("matplotlib")
    directory, rows = results
    (path,) = directory.glob("*.json")
    assert plot.plot(path).read_bytes().startswith(b"\x89PNG")
    title = " ".join(plot.draw(rows).get_suptitle().split())
    assert title.startswith("A tier of a Mooncake store reads at")
    assert "past its deadline" in title


def test_mooncake_bench_is_a_bench_of_the_cpu_that_needs_its_package() -> None:
    assert run.BENCHES["mooncake"].REQUIRES == "mooncake"
    assert "mooncake" not in run.names_for("cuda")
