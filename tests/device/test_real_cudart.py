"""The real CUDA runtimes of requirements/cudart.txt, opened without a device, each in a process of its own.

tests/native/test_real_cudart.cpp calls every entry point, and tests/native/check_signatures.cpp compares the
headers of the same wheels.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# For example nvidia_cuda_runtime_cu12-12.8.90: the folder of the wheel in .overlays.
WHEELS = re.findall(r"^(\w+)==(.*)$", (ROOT / "requirements" / "cudart.txt").read_text(), re.MULTILINE)
TABLE = re.findall(r"FUNCTION\([^,]+, (\w+),", (ROOT / "csrc" / "runtime" / "cuda_runtime.h").read_text())

# Prints the results of the calls as JSON. It must not import torch, which would load other libraries of CUDA.
PROGRAM = """
import ctypes, json, sys
from vitcache import CudaError
from vitcache._native import CudaRuntime, Event

def error_of(call, *arguments):
    try:
        call(*arguments)
    except CudaError as error:
        return str(error)

path, *names = sys.argv[1:]
runtime = CudaRuntime.open_file(path)
library = ctypes.CDLL(path)
print(json.dumps({
    "path": runtime.path,
    "missing": [name for name in names if not hasattr(library, name)],
    "version": runtime.version(),
    "driver": runtime.driver_version(),
    "devices": error_of(runtime.devices),
    "stream": error_of(runtime.create_stream, 0),
    "mode": error_of(runtime.exchange_capture_mode, 2),
    "event": error_of(runtime.is_done, Event(0)),
    "torch": "torch" in sys.modules,
}))
"""


def library_of(name: str, version: str) -> Path:
    """Return the library of a wheel. If it is not installed, skip the test, or fail under `make test`."""
    found = list((ROOT / ".overlays" / f"{name}-{version}").glob("nvidia/*/lib/libcudart.so.*"))
    if not found:
        missing = f"{name} {version} is not installed in .overlays: run `make cudart`"
        if os.environ.get("VITCACHE_REQUIRE_CUDART"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found[0]


@pytest.mark.parametrize(("name", "version"), WHEELS)
def test_real_cuda_runtime_without_a_driver_names_its_errors(name: str, version: str) -> None:
    path = library_of(name, version)
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, *TABLE, "cudaMemcpyBatchAsync"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    major, minor, _ = map(int, version.split("."))
    assert (result["path"], result["missing"]) == (str(path), [])
    assert result["version"] == 1000 * major + 10 * minor
    assert not result["torch"]
    if result["driver"]:
        pytest.skip(f"a driver is installed, it supports CUDA {result['driver']}")
    text = "cudaErrorInsufficientDriver (35), CUDA driver version is insufficient for CUDA runtime version"
    assert result["devices"].startswith(f"cudaGetDeviceCount: {text} [csrc/runtime/cuda_runtime.cpp:")
    assert text in result["stream"]
    assert text in result["mode"]
    assert result["event"].startswith("cudaEventQuery: cudaError")


def test_table_of_entry_points_and_pinned_runtimes_were_found() -> None:
    assert {"cudaGetErrorName", "cudaMemcpyAsync"} <= set(TABLE)
    assert [version.split(".")[0] for _, version in WHEELS] == ["12", "12", "13"]
