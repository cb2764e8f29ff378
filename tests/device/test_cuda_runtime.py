"""Where the CUDA runtime is looked for, and which one is opened: the real one, or the stand-in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from vitcache import CudaError
from vitcache.device import cuda_runtime, stand_in
from vitcache.device.cuda_runtime import cuda_runtime_directories, open_cuda_runtime


def test_directories_are_those_of_the_wheels_that_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "nvidia"
    for package in ("cuda_runtime", "cublas"):
        (wheels / package / "lib").mkdir(parents=True)
    (wheels / "cu13").mkdir()  # without a lib folder
    spec = SimpleNamespace(submodule_search_locations=[str(wheels), str(tmp_path / "gone")])
    monkeypatch.setattr(cuda_runtime, "find_spec", lambda name: spec if name == "nvidia" else None)
    assert cuda_runtime_directories() == [str(wheels / "cuda_runtime" / "lib")]
    (wheels / "cu13" / "lib").mkdir()
    assert cuda_runtime_directories() == [str(wheels / name / "lib") for name in ("cu13", "cuda_runtime")]


def test_without_wheels_there_are_no_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runtime, "find_spec", lambda name: None)
    assert cuda_runtime_directories() == []


def test_the_runtime_says_why_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCACHE_NO_CUDA", "1")
    runtime = open_cuda_runtime()
    assert not runtime.available
    assert runtime.searched == ["VITCACHE_NO_CUDA is 1: not looked for"]


def test_a_file_that_is_named_is_opened_in_place_of_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCACHE_CUDART", stand_in.path())
    runtime = open_cuda_runtime()
    assert runtime.available
    assert runtime.path == stand_in.path()


def test_the_stand_in_is_a_runtime_with_one_device() -> None:
    runtime = stand_in.open_runtime()
    assert runtime.available
    [device] = runtime.devices()
    assert device.name == "stand-in 0"


def test_another_stand_in_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCACHE_STAND_IN", "/nowhere/stand_in.so")
    assert stand_in.path() == "/nowhere/stand_in.so"
    with pytest.raises(CudaError, match=r"no CUDA runtime: /nowhere/stand_in\.so"):
        stand_in.open_runtime()


def test_a_build_without_the_stand_in_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITCACHE_STAND_IN", raising=False)
    monkeypatch.setattr(stand_in, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="this build is not complete"):
        stand_in.path()
