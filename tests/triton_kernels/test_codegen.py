"""What the assembler makes of the kernels on GPUs that are not here: 16-byte accesses, no spills.

The interpreter cannot see any of this: it is what makes the difference between a copy and a quarter of one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton

CASE = ("kernel", "arch", "source", "target", "HAS_SCALE", "HAS_HOLES", "HAS_TEXT_SCALE", "STORE")
REGISTER_BOUND = 64  # 8 warps a program: at 64 registers a multiprocessor still holds 4 programs


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    probe = Path(__file__).parents[1] / "support" / "codegen_probe.py"
    done = subprocess.run([sys.executable, probe], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_was_compiled_for_every_architecture_and_dtype(compiled):
    cases = {tuple(value for name, value in case.items() if name in CASE) for case in compiled}
    assert len(cases) == len(compiled) == 3 * 7 * (5 + 3)  # architectures, dtypes, variants of both kernels


def test_no_kernel_spills(compiled):
    for case in compiled:
        assert case["local"] == case["stack"] == 0, case
        assert not [access for access in case["memory"] if access.startswith(("LDL", "STL"))], case
        assert case["registers"] <= REGISTER_BOUND, case


def test_rows_move_in_16_byte_accesses(compiled):
    for case in compiled:
        loads = [access for access in case["memory"] if access.startswith("LDG")]
        stores = [access for access in case["memory"] if access.startswith("STG")]
        assert any(".128" in access for access in loads), case
        assert stores, case
        assert all(".128" in access for access in stores), case
        # What is narrower is the table and the id, 8 bytes each, or a pair of both.
        assert not [access for access in loads if ".U16" in access or access == "LDG.E"], case
