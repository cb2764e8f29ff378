"""No library is searched in the working directory: relative paths are refused, `sys.path` is not searched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitcache import CudaError, PinnedRing
from vitcache._native import CudaRuntime
from vitcache.device import cuda_runtime, stand_in
from vitcache.device.cuda_runtime import cuda_runtime_directories, open_cuda_runtime

NAME = "libcudart.so.13"

# Prints the facts of the runtime as JSON. It imports no torch, which may load a runtime.
PROGRAM = """
import json, sys
from vitcache.device.cuda_runtime import cuda_runtime_directories
from vitcache._native import CudaRuntime
runtime = CudaRuntime(sys.argv[1:])
print(json.dumps({
    "path": runtime.path, "searched": runtime.searched, "directories": cuda_runtime_directories(),
    "torch": "torch" in sys.modules,
}))
"""


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder with libraries that must not be loaded, where a search in the working directory finds them."""
    for folder in (tmp_path, tmp_path / "lib", tmp_path / "nvidia" / "cu13" / "lib"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stand_in.path(), folder / NAME)
    return tmp_path


def facts_in(folder: Path, *given: str, **variables: str) -> dict[str, Any]:
    """Run the program in `folder`, with `sys.path` as `python -m` sets it, and return its facts."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{PROGRAM}"
    root = str(Path(stand_in.__file__).parents[2])
    process = subprocess.run(
        [sys.executable, "-c", program, *given],
        cwd=folder,
        env=env | {"PYTHONPATH": os.pathsep.join([root, "", "."])} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    facts: dict[str, Any] = json.loads(process.stdout)
    return facts


def test_runtime_beside_the_working_directory_is_not_opened(planted: Path) -> None:
    facts = facts_in(planted)
    assert not facts["torch"]
    assert not str(facts["path"]).startswith(str(planted))
    assert not [folder for folder in facts["directories"] if folder.startswith(str(planted))]


@pytest.mark.parametrize("entry", ["", ".", "lib", "$ORIGIN"])
def test_relative_entry_of_ld_library_path_stops_the_search_of_the_loader(planted: Path, entry: str) -> None:
    facts = facts_in(planted, LD_LIBRARY_PATH=f"/nonexistent:{entry}")
    assert not str(facts["path"]).startswith(str(planted))
    searched = facts["searched"]
    assert any(
        f"LD_LIBRARY_PATH has the entry '{entry}', it must be an absolute path" in line for line in searched
    )
    assert any(line.startswith(f"/nonexistent/{NAME} (LD_LIBRARY_PATH)") for line in searched)


def test_absolute_entry_of_ld_library_path_is_searched(planted: Path) -> None:
    for path in (f"{planted}", f"{planted}:", f".:{planted / 'lib'}"):
        assert str(facts_in(planted, LD_LIBRARY_PATH=path)["path"]).startswith(str(planted))


@pytest.mark.parametrize("value", [NAME, f"./{NAME}", f"lib/{NAME}"])
def test_relative_path_in_vitcache_cudart_is_refused(
    planted: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(planted)
    monkeypatch.setenv("VITCACHE_CUDART", value)
    runtime = open_cuda_runtime()
    assert not runtime.available
    assert runtime.searched == [f"{value} (VITCACHE_CUDART): it must be an absolute path"]


@pytest.mark.parametrize("value", [NAME, f"./{NAME}"])
def test_relative_path_in_vitcache_stand_in_is_refused(
    planted: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(planted)
    monkeypatch.setenv("VITCACHE_STAND_IN", value)
    for call in (stand_in.path, stand_in.open_runtime, lambda: PinnedRing(1 << 16, backend="host")):
        with pytest.raises(CudaError, match=f"VITCACHE_STAND_IN is '{value}', it must be an absolute path"):
            call()


def test_open_file_and_given_directories_refuse_relative_paths(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(planted)
    with pytest.raises(CudaError, match=r"lib/libcudart\.so\.13 \(given file\): it must be an absolute path"):
        CudaRuntime.open_file(f"lib/{NAME}")
    assert (
        f"lib/{NAME} (given directory): it must be an absolute path"
        in facts_in(planted, "lib", "")["searched"]
    )


def test_site_folders_are_absolute_and_begin_with_that_of_torch() -> None:
    import torch

    folders = cuda_runtime._site_folders()
    assert folders[0] == Path(torch.__file__).parents[1]
    assert all(folder.is_absolute() for folder in folders)
    assert all(Path(folder).is_absolute() for folder in cuda_runtime_directories())
