"""Machine code of the kernels for several architectures: 16-byte accesses, and no register spills.

The machine needs no GPU. The interpreter cannot test this. With narrower accesses a kernel reaches about a
quarter of a copy's speed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton

VARIANT = ("HAS_SCALE", "HAS_HOLES", "HAS_TEXT_SCALE", "STORE", "LISTED", "PACKED", "HAS_NARROW")
SUPPORT = Path(__file__).parents[1] / "support"
# With 8 warps per program and 64 registers per thread, 4 programs fit on a multiprocessor.
REGISTER_BOUND = 64


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


def test_probe_compiles_every_pair_of_architecture_dtypes_and_variant(compiled):
    for kernel, num_variants in (("scatter", 8), ("embed", 6)):
        cases = [case for case in compiled if case["kernel"] == kernel]
        archs = [case["arch"] for case in cases]
        dtypes = [(case["source"], case["target"]) for case in cases]
        variants = [tuple(case.get(name) for name in VARIANT) for case in cases]
        assert len(set(zip(archs, dtypes, strict=True))) == 3 * 7
        assert len(set(zip(archs, variants, strict=True))) == 3 * num_variants
        assert len(set(zip(dtypes, variants, strict=True))) == 7 * num_variants


def test_kernels_do_not_spill_registers(compiled):
    for case in compiled:
        assert case["local"] == case["stack"] == 0, case
        assert not [access for access in case["memory"] if access.startswith(("LDL", "STL"))], case
        assert case["registers"] <= REGISTER_BOUND, case


def test_kernels_load_and_store_rows_in_16_byte_accesses(compiled):
    for case in compiled:
        loads = [access for access in case["memory"] if access.startswith("LDG")]
        stores = [access for access in case["memory"] if access.startswith("STG")]
        assert any(".128" in access for access in loads), case
        assert stores, case
        assert all(".128" in access for access in stores), case
        # Only the loads of the table, 8 bytes, and of the id's low word, 4 bytes, may be narrower.
        assert not [access for access in loads if ".U16" in access], case
        assert loads.count("LDG.E") == (case["kernel"] == "embed"), case
