"""Random signals into calls of four threads: no call hangs, no page is lost, every row is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

STORM = Path(__file__).parents[1] / "support" / "signal_storm.py"


@pytest.mark.parametrize(
    ("num_signals", "seconds"), [(200, 120), pytest.param(2000, 900, marks=pytest.mark.soak)]
)
@pytest.mark.timeout(1000)
def test_random_signals_hang_no_thread_and_break_no_cache(num_signals: int, seconds: int) -> None:
    command = [sys.executable, str(STORM), str(num_signals), "0"]
    storm = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert storm.returncode == 0, storm.stderr
    report = json.loads(storm.stdout.splitlines()[-1])
    assert report["signals"] >= num_signals
    assert (report["broken"], report["held"]) == (0, {"leased_pages": 0, "claims": 0}), storm.stderr
    for call in ("put", "get", "get_many", "reserve", "embed", "prefetch", "close"):
        assert report["by_call"].get(call, 0) > 0, report
    assert report["rows"] > 0
    assert min(report["steps"]) > 0
