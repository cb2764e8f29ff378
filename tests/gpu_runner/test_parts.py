"""The parts of `make gpu`: their order, which benches a GPU leaves out, and their commands."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_runner import facts
from gpu_runner.lines import ROOT
from gpu_runner.parts import CORE, ORDER, SANITIZE, bench_names, check_only, in_order, make_part
from gpu_runner.settings import Settings

from vitcache.bench import run

# Benches by whether they measure a GPU.
BENCHES = {
    **dict.fromkeys(("accuracy", "blocks", "hits", "keys", "limit", "merge", "multiturn"), True),
    **dict.fromkeys(("placement", "ring", "scatter", "step", "vision", "engines", "sglang"), True),
    **dict.fromkeys(("attach", "cache", "cpu"), False),
}
ON_GPU = [
    *("probe", "tests", "placement", "scatter", "ring", "step", "hits", "merge", "multiturn", "blocks"),
    *("keys", "limit", "engines", "sglang", "accuracy", "vision"),
]
DRY = Settings("python", Path("out"), dry=True)
GPU = Settings("python", Path("out"), budget_s=600)


def test_parts_on_a_gpu_are_in_the_order_of_their_worth_without_cpu_benches() -> None:
    assert in_order(BENCHES, dry=False) == [*ON_GPU, "sanitize"]


def test_parts_of_a_dry_run_end_with_the_cpu_benches() -> None:
    assert in_order(BENCHES, dry=True) == [*ON_GPU, "attach", "cache", "cpu"]


def test_parts_leave_out_a_bench_of_the_order_that_does_not_exist() -> None:
    benches = {"placement": True, "step": False}
    assert in_order(benches, dry=False) == ["probe", "tests", "placement", "sanitize"]
    assert in_order(benches, dry=True) == ["probe", "tests", "placement", "step"]


def test_only_accepts_every_part_and_refuses_an_unknown_one_by_its_name() -> None:
    check_only(("probe", "tests", "sanitize", "cache"), ["cache"])
    with pytest.raises(ValueError, match="must be one of: probe tests sanitize cache ring; got placement"):
        check_only(("ring", "placement"), ["cache", "ring"])


def test_bench_names_are_those_of_the_command_and_its_list_says_what_a_gpu_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench_names(ROOT) == sorted(run.BENCHES)
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    assert run.run(parser.parse_args(["--list"])) == 0
    benches = json.loads(capsys.readouterr().out)
    assert sorted(benches) == sorted(run.BENCHES)
    assert set(ORDER) - {"probe", "tests"} <= {name for name, on_gpu in benches.items() if on_gpu}
    assert {"attach", "cache", "cpu", "decode", "pages", "policy"} <= {
        name for name, on_gpu in benches.items() if not on_gpu
    }


@pytest.mark.parametrize(
    ("settings", "limit_s"),
    [
        (GPU, 240),
        (replace(GPU, budget_s=None), float("inf")),
        (replace(GPU, only=("tests",)), float("inf")),
        (replace(GPU, only=("tests", "ring")), 240),
    ],
    ids=["budget", "no budget", "tests alone", "tests and a bench"],
)
def test_tests_use_a_share_of_the_budget_if_other_parts_follow(settings: Settings, limit_s: float) -> None:
    assert make_part("tests", settings, has_xdist=True).limit_s == limit_s


@pytest.mark.parametrize("size", sorted(run.REPEATS))
def test_case_names_of_a_bench_are_distinct_so_that_a_run_can_be_resumed(size: str) -> None:
    for bench in run.BENCHES.values():
        names = [case.name for case in bench.CASES[size]]
        assert len(set(names)) == len(names), bench.__name__


def test_tests_begin_with_the_core_files_and_name_every_file_once() -> None:
    [command] = make_part("tests", GPU, has_xdist=True).commands
    files = [argument for argument in command.arguments if argument.startswith("tests/gpu/")]
    assert files[: len(CORE)] == [f"tests/gpu/test_{name}.py" for name in CORE]
    assert sorted(files) == sorted(f"tests/gpu/{path.name}" for path in (ROOT / "tests/gpu").glob("test_*"))
    for argument in command.arguments:
        assert not argument.startswith("tests/") or (ROOT / argument).exists()


def test_tests_use_a_worker_only_with_xdist_and_resume_only_when_asked() -> None:
    [with_worker] = make_part("tests", GPU, has_xdist=True).commands
    [without] = make_part("tests", GPU, has_xdist=False).commands
    assert "--max-worker-restart" in with_worker.arguments
    assert "--max-worker-restart" not in without.arguments
    assert "VITCACHE_TEST_RESUME" not in without.env
    [resumed] = make_part("tests", replace(GPU, resume=Path("out")), has_xdist=False).commands
    assert resumed.env["VITCACHE_TEST_RESUME"] == "1"


@pytest.mark.parametrize("has_xdist", [False, True])
def test_a_test_file_that_cannot_be_imported_stops_no_other_file(tmp_path: Path, has_xdist: bool) -> None:
    if has_xdist:
        pytest.importorskip("xdist")
    [command] = make_part("tests", GPU, has_xdist=has_xdist).commands
    options = [argument for argument in command.arguments if argument.startswith("--continue-on")]
    (tmp_path / "test_broken.py").write_text("import no_such_module")
    (tmp_path / "test_whole.py").write_text("def test_passes(): pass")
    arguments = [
        "-q",
        *options,
        *(["-n", "1"] if has_xdist else []),
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, "-m", "pytest", *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 passed, 1 error" in done.stdout


def test_bench_runs_full_cases_on_a_gpu_and_appends_to_the_lines() -> None:
    [command] = make_part("ring", GPU, has_xdist=False).commands
    text = " ".join(command.arguments)
    assert "--bench ring --cases full" in text
    assert f"--lines {GPU.lines} --resume" in text
    assert "--cases smoke" in " ".join(make_part("ring", DRY, has_xdist=False).commands[0].arguments)


def test_engines_run_their_tests_and_their_bench_and_refuse_waits_for_the_gpu() -> None:
    part = make_part("engines", GPU, has_xdist=True)
    assert part.skipped is None
    bench, tests = part.commands
    assert all(command.env["VLLM_GPU_SYNC_CHECK"] == "error" for command in part.commands)
    assert (tests.suite, tests.env["ENGINES_DEVICE"]) == ("engines", "cuda")
    assert all((ROOT / argument).exists() for argument in tests.arguments if argument.startswith("tests/"))
    assert tests.arguments[-2:] == ["-m", "engines or full"]
    assert "--bench engines --cases full" in " ".join(bench.arguments)
    resumed = make_part("engines", replace(GPU, resume=Path("out")), has_xdist=True)
    assert resumed.commands[1].env["VITCACHE_TEST_RESUME"] == "1"


def test_engines_are_skipped_where_vllm_cannot_use_the_gpu_and_no_other_part_is() -> None:
    reason = "python3 has no vLLM"
    assert make_part("engines", GPU, has_xdist=True, why_no_vllm=reason).skipped == reason
    assert make_part("ring", GPU, has_xdist=True, why_no_vllm=reason).skipped is None


def test_bench_of_sglang_is_skipped_where_sglang_is_missing_and_no_other_part_is() -> None:
    reason = "python3 has no SGLang"
    assert make_part("sglang", GPU, has_xdist=True, why_no_sglang=reason).skipped == reason
    assert make_part("sglang", GPU, has_xdist=True).skipped is None
    assert make_part("engines", GPU, has_xdist=True, why_no_sglang=reason).skipped is None


def test_facts_of_a_dry_run_say_why_no_engine_runs() -> None:
    settings = Settings(sys.executable, Path("out"), dry=True)
    found = facts.ask(settings, 120.0)
    assert found["why_no_vllm"] == found["why_no_sglang"] == "a dry run has no GPU"


def test_probe_has_20_seconds_on_a_gpu_and_no_limit_in_a_dry_run() -> None:
    part = make_part("probe", GPU, has_xdist=False)
    assert part.commands[0].arguments[-2:] == ["--seconds", "18"]
    assert part.limit_s == 30
    assert make_part("probe", DRY, has_xdist=False).limit_s == float("inf")


def test_sanitize_runs_two_tools_on_a_gpu_and_the_tests_in_a_dry_run() -> None:
    part = make_part(SANITIZE, GPU, has_xdist=True)
    assert [command.suite for command in part.commands] == ["memcheck", "racecheck"]
    for command in part.commands:
        assert command.arguments[0] == "compute-sanitizer"
        assert all((ROOT / argument).exists() for argument in command.arguments if "tests/" in argument)
    dry = make_part(SANITIZE, DRY, has_xdist=True)
    assert [command.suite for command in dry.commands] == ["tests"]
