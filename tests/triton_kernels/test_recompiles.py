"""Triton's real compiler, without a GPU: `warm_up` compiles, later calls compile nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton

PROBE = Path(__file__).parents[1] / "support" / "recompile_probe.py"


def test_calls_after_warm_up_compile_nothing() -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, PROBE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    assert int(counts.pop("warm_up")) > 0
    assert int(counts.pop("a dtype that warm_up was not told")) == 1
    assert int(counts.pop("launches")) == 51
    assert counts == {
        "ids of any dtype and offset": "0",
        "deepstack of any number of tokens": "0",
        "any stride and alignment": "0",
        "a table": "0",
    }
