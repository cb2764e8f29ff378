"""`python -m vitcache bench`: a bench whose package is not installed is left out, or fails if chosen."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitcache.bench import run


def run_bench(directory: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return run.run(parser.parse_args(["--out", str(directory), *arguments]))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two benches, of which `engines` needs a package that does not exist; the names of those that ran."""
    names: list[str] = []

    def fake_bench(name: str, **options: str) -> SimpleNamespace:
        def run_case(*_: object) -> list[str]:
            names.append(name)
            return []

        return SimpleNamespace(CASES={"smoke": [SimpleNamespace(name="case")]}, run_case=run_case, **options)

    benches = {"cache": fake_bench("cache"), "engines": fake_bench("engines", REQUIRES="package_of_nowhere")}
    monkeypatch.setattr(run, "BENCHES", benches)
    return names


def test_chosen_bench_without_its_package_ends_with_one_line_and_code_1(
    ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(tmp_path, "--bench", "engines") == 1
    output = capsys.readouterr()
    assert output.err == "vitcache bench: engines needs package_of_nowhere: pip install package_of_nowhere\n"
    assert output.out == ""
    assert ran == []


def test_all_benches_leave_out_one_without_its_package_and_say_so(
    ran: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_bench(tmp_path) == 0
    assert "engines: left out, it needs package_of_nowhere, which is not installed" in capsys.readouterr().out
    assert ran == ["cache"]


def test_case_whose_package_is_missing_names_it_as_pip_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.delitem(sys.modules, "vitcache.bench.chats.digits", raising=False)
    assert run_bench(tmp_path, "--bench", "accuracy", "--cases", "smoke") == 1
    failures = [line for line in capsys.readouterr().err.splitlines() if " failed: " in line]
    assert failures
    for line in failures:
        assert line.endswith(" failed: it needs scikit-learn: pip install 'vitcache[demo]'")


def test_only_the_benches_of_engines_and_of_a_store_need_a_package() -> None:
    needs = {name: bench.REQUIRES for name, bench in run.BENCHES.items() if hasattr(bench, "REQUIRES")}
    engines = {"engines": "vllm", "sglang": "sglang", "sglang_chat": "sglang"}
    assert needs == {**engines, "mooncake": "mooncake"}
