"""Builds a stand-in for the CUDA runtime with controls, if the installed stand-in has none.

A wheel's stand-in has no controls, so tests of an sdist against an installed wheel build one with CMake.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from vitcache.testing import stand_in

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "stand-in"


def provide() -> None:
    """Make this process, and its child processes, use a stand-in with controls."""
    if not stand_in.has_controls():
        os.environ["VITCACHE_STAND_IN"] = str(build())


def build() -> Path:
    """Build the stand-in, and return the path of the library."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=sysconfig.get_path("scripts"))
    if cmake is None:
        raise pytest.UsageError(
            "the installed stand-in for the CUDA runtime has no controls, and cmake, which would build one, "
            "was not found: pip install cmake, or build with CMAKE_ARGS=-DVITCACHE_STAND_IN_FAULTS=ON"
        )
    options = ["-DVITCACHE_STAND_IN_FAULTS=ON", "-DCMAKE_BUILD_TYPE=Release"]
    try:
        subprocess.run([cmake, "-S", ROOT, "-B", BUILD, *options], check=True)
        subprocess.run([cmake, "--build", BUILD, "--target", "vitcache_stand_in_runtime"], check=True)
    except subprocess.CalledProcessError as error:
        raise pytest.UsageError(f"the stand-in for the CUDA runtime could not be built: {error}") from error
    return BUILD / "libvitcache_stand_in_runtime.so"
