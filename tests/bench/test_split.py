"""Result lines of benches: written beside the JSON files, resumed, and split into equal JSON files again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vitcache.bench import run, split
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.result_lines import ResultLines, read
from vitcache.bench.harness.timing import Sample, Timer

CPU = torch.device("cpu")


@dataclass
class FakeBench:
    """A bench with three cases of two results each; a case whose name is in `failing` raises after one."""

    failing: tuple[str, ...] = ()

    @property
    def CASES(self) -> dict[str, list[SimpleNamespace]]:
        return {"smoke": [SimpleNamespace(name=name) for name in "abc"]}

    def run_case(self, case: SimpleNamespace, recorder: Recorder, timer: Timer) -> Iterator[str]:
        yield "measuring"
        recorder.add(f"{case.name}, hits", "copy", "device_us", "us", Sample(1 / 3, 0.25, 0.5))
        if case.name in self.failing:
            raise RuntimeError("wrong values")
        against = ("copy", 3.0)
        recorder.add(
            f"{case.name}, hits", "ring", "device_us", "us", Sample.of([2.0]), against=against, limit=1.0
        )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> FakeBench:
    bench = FakeBench()
    monkeypatch.setattr(run, "BENCHES", {"ring": bench})
    return bench


def run_bench(folder: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    options = ["--bench", "ring", "--cases", "smoke", "--out", str(folder / "own")]
    return run.run(parser.parse_args([*options, "--lines", str(folder / "results.jsonl"), *arguments]))


def own_file(folder: Path) -> bytes:
    [path] = (folder / "own").iterdir()
    return path.read_bytes()


def split_file(folder: Path, *arguments: str) -> dict[str, bytes]:
    out = folder / "out"
    assert split.main([str(folder / "results.jsonl"), "--out", str(out), *arguments]) == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_split_writes_the_file_that_the_bench_writes(bench: FakeBench, tmp_path: Path) -> None:
    assert run_bench(tmp_path) == 0
    [(name, content)] = split_file(tmp_path).items()
    assert content == own_file(tmp_path)
    assert [path.name for path in (tmp_path / "own").iterdir()] == [name]
    kinds = [line["kind"] for line in read(tmp_path / "results.jsonl")]
    assert kinds == ["case", "row", "row", "case"] * 3


def test_bench_resumed_after_a_failure_repeats_only_that_case_at_its_place(
    bench: FakeBench, tmp_path: Path
) -> None:
    bench.failing = ("b",)
    assert run_bench(tmp_path) == 1
    assert [line["state"] for line in read(tmp_path / "results.jsonl") if line["kind"] == "case"] == [
        *("begun", "finished", "begun", "failed", "begun", "finished")
    ]
    bench.failing = ()
    num_lines = len(read(tmp_path / "results.jsonl"))
    assert run_bench(tmp_path, "--resume") == 0
    repeated = read(tmp_path / "results.jsonl")[num_lines:]
    assert {line["case"] for line in repeated} == {"b", "b, hits"}
    [content] = split_file(tmp_path).values()
    assert content == own_file(tmp_path)
    labels = [row["case"] for row in json.loads(content)]
    assert labels == ["a, hits", "a, hits", "b, hits", "b, hits", "c, hits", "c, hits"]


def test_bench_with_finished_cases_runs_them_again_without_resume(bench: FakeBench, tmp_path: Path) -> None:
    assert run_bench(tmp_path) == run_bench(tmp_path) == 0
    [content] = split_file(tmp_path).values()
    assert content == own_file(tmp_path)
    assert len(json.loads(content)) == 6


def test_bench_refuses_resume_without_lines(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    assert run.run(parser.parse_args(["--resume", "--out", str(tmp_path)])) == 2
    assert "--resume needs --lines" in capsys.readouterr().err


def test_split_leaves_out_an_incomplete_bench_unless_asked(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.failing = ("b",)
    run_bench(tmp_path)
    lines = ResultLines(tmp_path / "results.jsonl")
    lines.add("case", bench="ring", case="c", state="begun", number=3, count=4)
    lines.add("row", **json.loads(own_file(tmp_path))[-1])
    capsys.readouterr()
    assert split_file(tmp_path) == {}
    reason = "1 of 4 cases are finished (b failed, c was cut, 1 not started)"
    assert capsys.readouterr().out == f"left out ring: {reason}; --partial writes its 4 results\n"
    [(name, content)] = split_file(tmp_path, "--partial").items()
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out' / name}: 4 results, {reason}\n"
    labels = [row["case"] for row in json.loads(content)]
    assert labels == ["a, hits", "a, hits", "b, hits", "c, hits"]


def test_split_copies_the_timeline_of_a_bench_that_it_writes(bench: FakeBench, tmp_path: Path) -> None:
    run_bench(tmp_path)
    [path] = (tmp_path / "own").iterdir()
    trace = f"{path.stem}-timeline.json.gz"
    (tmp_path / trace).write_bytes(b"trace")
    (tmp_path / "other-timeline.json.gz").write_bytes(b"other")
    files = split_file(tmp_path)
    assert sorted(files) == sorted([path.name, trace])
    assert files[trace] == b"trace"


def test_split_names_a_bench_without_results(
    bench: FakeBench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ResultLines(tmp_path / "results.jsonl").add(
        "case", bench="limit", case="a", state="begun", number=1, count=2
    )
    assert split_file(tmp_path, "--partial") == {}
    assert (
        "left out limit: no results, 0 of 2 cases are finished (a was cut, 1 not started)"
        in capsys.readouterr().out
    )


def test_split_of_a_file_that_does_not_exist_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert split.main([str(tmp_path / "results.jsonl"), "--out", str(tmp_path)]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_commit_of_results_is_the_variable_where_git_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcache.bench.harness.record import describe_machine

    monkeypatch.setenv("VITCACHE_COMMIT", "abc")
    assert describe_machine.__wrapped__(CPU)["commit"] == "abc"
