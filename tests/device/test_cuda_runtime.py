"""The folders that are searched for the CUDA runtime, and the library that is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitcache import CudaError
from vitcache.device import cuda_runtime, stand_in
from vitcache.device.cuda_runtime import cuda_runtime_directories, open_cuda_runtime


def test_cuda_runtime_directories_are_the_lib_folders_of_installed_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "nvidia"
    for package in ("cuda_runtime", "cublas"):
        (wheels / package / "lib").mkdir(parents=True)
    (wheels / "cu13").mkdir()  # without a lib folder
    monkeypatch.setattr(cuda_runtime, "_site_folders", lambda: [tmp_path, tmp_path / "missing"])
    assert cuda_runtime_directories() == [str(wheels / "cuda_runtime" / "lib")]
    (wheels / "cu13" / "lib").mkdir()
    assert cuda_runtime_directories() == [str(wheels / name / "lib") for name in ("cu13", "cuda_runtime")]


def test_cuda_runtime_directories_without_wheels_are_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_runtime, "_site_folders", lambda: [tmp_path])
    assert cuda_runtime_directories() == []


def test_open_cuda_runtime_with_vitcache_no_cuda_set_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCACHE_NO_CUDA", "1")
    runtime = open_cuda_runtime()
    assert not runtime.available
    assert runtime.searched == ["VITCACHE_NO_CUDA is 1: the search is disabled"]


def test_open_cuda_runtime_opens_the_file_that_vitcache_cudart_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCACHE_CUDART", stand_in.path())
    runtime = open_cuda_runtime()
    assert runtime.available
    assert runtime.path == stand_in.path()


def test_stand_in_is_a_runtime_with_one_device() -> None:
    runtime = stand_in.open_runtime()
    assert runtime.available
    [device] = runtime.devices()
    assert device.name == "stand-in 0"


def test_stand_in_named_in_the_environment_and_missing_is_a_cuda_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VITCACHE_STAND_IN", "/nowhere/stand_in.so")
    assert stand_in.path() == "/nowhere/stand_in.so"
    with pytest.raises(CudaError, match=r"no CUDA runtime: /nowhere/stand_in\.so"):
        stand_in.open_runtime()


def test_stand_in_path_in_an_incomplete_build_is_a_runtime_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITCACHE_STAND_IN", raising=False)
    monkeypatch.setattr(stand_in, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="this build is not complete"):
        stand_in.path()
