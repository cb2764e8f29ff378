"""A stand-in for the CUDA runtime that tests can stop and make fail, where the installed one cannot be.

A wheel's cannot. So tests that are run from an sdist against an installed wheel build their own, with CMake.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from vitcache.testing import stand_in

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "stand-in"


def provide() -> None:
    """Let this process, and those that it starts, use a stand-in with controls."""
    if not stand_in.has_controls():
        os.environ["VITCACHE_STAND_IN"] = str(build())


def build() -> Path:
    """Build it; return its file."""
    options = ["-DVITCACHE_STAND_IN_FAULTS=ON", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(["cmake", "-S", ROOT, "-B", BUILD, *options], check=True)
    subprocess.run(["cmake", "--build", BUILD, "--target", "vitcache_host_runtime"], check=True)
    return BUILD / "libvitcache_host_runtime.so"
