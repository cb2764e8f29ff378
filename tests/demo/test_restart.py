"""The restart of the demo: a new process finds the rows that another process stored in a directory."""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")
pytest.importorskip("PIL.Image")

from vitcache.demo import add_arguments, restart, run
from vitcache.demo.report import restart_fact, write_json
from vitcache.demo.restart import Restart, measure_restart

pytestmark = pytest.mark.transformers

RESTART = Restart(6, 6, 1, 100.4, 50.2, True)


def run_demo(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(("--turns", "1", "--repeats", "1", *arguments)))


def test_a_new_process_encodes_the_first_image_and_reads_the_rest(tmp_path: Path) -> None:
    steps: list[str] = []
    result = measure_restart("qwen3_vl", "tiny", 2, 1, tmp_path / "rows", steps.append)
    assert len(steps) == 2
    assert (result.images, result.encoded, result.equal) == (2, 2, True)
    # The disk may be late on a busy machine, and then all images are encoded.
    assert 1 <= result.encoded_disk <= 2
    assert result.ttft_ms_disk > 0
    assert (tmp_path / "rows" / "entries").is_dir()


def test_a_new_process_that_fails_is_named_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        return subprocess.CompletedProcess(args, 1, "", "Traceback\nValueError: planted\n")

    monkeypatch.setattr(restart.subprocess, "run", fail)
    assert run_demo("--restart", str(tmp_path / "rows")) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(": the new process failed: ValueError: planted")


def test_a_file_in_place_of_the_directory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run_demo("--restart", str(tmp_path / "file")) == 2
    line = capsys.readouterr().err
    assert f"--restart must be a directory, {tmp_path / 'file'} is a file" in line


def test_the_restart_is_in_the_words_in_the_json_file_and_in_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert restart_fact(RESTART) == (
        "After a restart, a new process encoded 6 images for the last turn without the disk, 1 with it: "
        "attach encodes the first image of each process. The first token took 100 ms without the disk, 50 ms "
        "with it. Logits were equal, bit for bit."
    )
    write_json(tmp_path / "report.json", [], {"device": "cpu"}, RESTART)
    assert json.loads((tmp_path / "report.json").read_text())["restart"]["encoded_disk"] == 1
    monkeypatch.setattr(restart, "measure_restart", lambda *args: replace(RESTART, equal=False))
    assert run_demo("--restart", str(tmp_path / "rows")) == 1
    assert "Logits were DIFFERENT." in " ".join(capsys.readouterr().out.split())
