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

VARIANT = ("HAS_SCALE", "HAS_HOLES", "HAS_TEXT_SCALE", "STORE")
SUPPORT = Path(__file__).parents[1] / "support"
REGISTER_BOUND = 64  # 8 warps a program: at 64 registers a multiprocessor still holds 4 programs


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(SUPPORT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, SUPPORT / "codegen_probe.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_pair_of_architecture_dtypes_and_variant_is_compiled(compiled):
    for kernel, num_variants in (("scatter", 5), ("embed", 3)):
        cases = [case for case in compiled if case["kernel"] == kernel]
        archs = [case["arch"] for case in cases]
        dtypes = [(case["source"], case["target"]) for case in cases]
        variants = [tuple(case.get(name) for name in VARIANT) for case in cases]
        assert len(set(zip(archs, dtypes, strict=True))) == 3 * 7
        assert len(set(zip(archs, variants, strict=True))) == 3 * num_variants
        assert len(set(zip(dtypes, variants, strict=True))) == 7 * num_variants


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
