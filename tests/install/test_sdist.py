"""The sdist: it has every file of the repository, and no other file."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Files of the repository that the sdist leaves out.
LEFT_OUT: set[str] = set()
# Files that setuptools adds.
ADDED = {"PKG-INFO", "setup.cfg"}
METADATA = "vitcache.egg-info/"


def files_of_the_repository() -> set[str]:
    """Return the files that git tracks or would track."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip("git lists the files of a repository, and this folder is not a checkout")
    return {name for name in done.stdout.split("\0") if (ROOT / name).is_file()}


def files_of_the_sdist(folder: Path) -> set[str]:
    code = "import sys; from setuptools.build_meta import build_sdist; print(build_sdist(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    [archive] = folder.iterdir()
    with tarfile.open(archive) as files:
        return {name.partition("/")[2] for name in files.getnames() if files.getmember(name).isfile()}


def test_sdist_has_every_file_of_the_repository_and_no_other(tmp_path: Path) -> None:
    expected = files_of_the_repository()
    found = {name for name in files_of_the_sdist(tmp_path) if not name.startswith(METADATA)}
    assert expected >= LEFT_OUT
    assert sorted(expected - LEFT_OUT - found) == []
    assert sorted(found - expected - ADDED) == []
