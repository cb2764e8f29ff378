"""The probe as a command: its lines, its time, and items that fail, hang or are killed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import torch

from vitcache.bench import probe
from vitcache.bench.harness.result_lines import read
from vitcache.bench.probes.findings import Finding, Subject
from vitcache.placement import dispatch

SUBJECT = Subject(torch.device("cpu"))


def test_probe_kernels_are_chosen_only_inside_the_probe() -> None:
    chosen = dispatch.uses_kernels
    with probe.kernels_everywhere(SUBJECT):
        assert dispatch.uses_kernels(SUBJECT.device)
    assert dispatch.uses_kernels is chosen


def raises(subject: Subject) -> Iterator[Finding]:
    yield Finding.number("first", 1.23456, "GB/s")
    raise RuntimeError("device lost")


def holds(subject: Subject) -> Iterator[Finding]:
    yield Finding.of("last", True)


@pytest.fixture
def fake_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two items in the process of the probe, one whose process is killed, and one whose process hangs."""
    killed = 'print(\'{"item": "captured", "verdict": "ok"}\', flush=True); import os; os.abort()'
    sources = {"killed": killed, "hangs": "import time; time.sleep(60)"}
    monkeypatch.setattr(probe, "ISOLATED", ("killed", "hangs"))
    monkeypatch.setattr(probe, "BESIDE", ("raises",))
    monkeypatch.setattr(probe, "IN_TURN", ("holds",))
    monkeypatch.setattr(probe, "items", lambda: {"raises": raises, "holds": holds})
    monkeypatch.setattr(probe, "MOST_S", 0.5)
    monkeypatch.setattr(
        probe,
        "start_isolated",
        lambda name: Popen([sys.executable, "-c", sources[name]], stdout=PIPE, stderr=PIPE, text=True),
    )


@pytest.mark.usefixtures("fake_items")
def test_probe_goes_on_after_items_that_raise_hang_or_are_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe.main(["--lines", str(tmp_path / "results.jsonl")]) == 1
    lines = read(tmp_path / "results.jsonl")
    assert [(line["item"], line["verdict"]) for line in lines] == [
        *(("first", "number"), ("raises", "BAD")),
        *(("captured", "ok"), ("killed", "BAD"), ("hangs", "BAD"), ("last", "ok")),
    ]
    assert {line["kind"] for line in lines} == {"probe"}
    texts = {line["item"]: line["text"] for line in lines}
    assert texts["killed"].startswith("exit code -6")
    assert "ended after 0 s" in texts["hangs"]
    assert texts["raises"] == "RuntimeError: device lost"
    output = capsys.readouterr().out.splitlines()
    assert output[0].split() == ["number", "first", "1.235", "GB/s"]
    assert len(output) == len(lines)


@pytest.mark.usefixtures("fake_items")
def test_probe_leaves_out_the_items_that_do_not_fit_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ISOLATED", ())
    now = iter([0.0, 18.5])
    found = list(probe.probe(20, SUBJECT, clock=lambda: next(now)))
    assert [(finding.item, finding.verdict) for finding in found] == [
        *(("first", "number"), ("raises", "BAD"), ("holds", "left out"))
    ]
    assert found[-1].text == "the probe has 20 s in all"
