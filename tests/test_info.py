"""The report of what is there and what is missing, which never fails, whatever is missing."""

import json
import sys
from types import SimpleNamespace

import pytest

from vitcache import CudaError, info
from vitcache.__main__ import main

DOUBT = " (vitcache supports 2.9 to 2.14, tested with 2.13)"


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_words_have_one_line_for_each_part(capsys):
    assert main(["info"]) == 0
    head, *parts = lines(capsys)
    assert head.startswith("vitcache ")
    assert len(parts) == len(info.collect())
    assert all(line.startswith(("  has    ", "  lacks  ")) for line in parts)


def test_json_has_the_same_words(capsys):
    assert main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.pop("vitcache")
    assert {name: part["words"] for name, part in report.items()} == {
        name: part.text for name, part in info.collect().items()
    }
    assert report["python"]["version"] == sys.version.split()[0]


@pytest.mark.parametrize(
    ("module", "part"),
    [("torch", "torch"), ("vitcache._native", "cuda_runtime"), ("vitcache._native", "gpu")],
)
def test_a_missing_module_is_an_answer(monkeypatch, module, part):
    monkeypatch.setitem(sys.modules, module, None)
    found = info.collect()[part]
    assert not found.usable
    assert found.text == f"needs {module}, which is not installed"


def test_a_native_module_that_was_not_built_is_an_answer(monkeypatch):
    monkeypatch.setitem(sys.modules, "vitcache._native", None)
    found = info.collect()["native_module"]
    assert not found.usable
    assert found.text.startswith("not built")


def test_a_native_module_of_another_version_is_named(monkeypatch):
    monkeypatch.setattr(info, "__version__", "9.9.9")
    found = info.inspect_native_module()
    assert not found.usable
    assert "rebuild it" in found.text


def test_a_part_that_breaks_does_not_break_the_report(monkeypatch):
    def broken(name):
        raise OSError(f"cannot read {name}")

    monkeypatch.setattr(info, "installed_version", broken)
    parts = info.collect()
    assert parts["triton"] == info.Part(False, "OSError: cannot read triton")
    assert parts["python"].usable


def test_a_package_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setattr(info, "installed_version", lambda name: None)
    parts = info.collect()
    assert "pip install 'vitcache[transformers]'" in parts["transformers"].text
    assert "not prometheus-client (pip install 'vitcache[metrics]')" in parts["extras"].text


def test_no_cuda_runtime_is_an_answer(monkeypatch):
    monkeypatch.setenv("VITCACHE_NO_CUDA", "1")
    parts = info.collect()
    assert not parts["cuda_runtime"].usable
    assert "VITCACHE_NO_CUDA" in parts["cuda_runtime"].text
    assert not parts["gpu"].usable


def runtime(devices, driver=13010):
    return SimpleNamespace(
        available=True,
        searched=[],
        path="/lib/libcudart.so.13",
        version=lambda: 13000,
        driver_version=lambda: driver,
        devices=devices,
    )


def test_gpus_are_named_with_their_capability(monkeypatch):
    device = SimpleNamespace(name="Fake GPU", major=9, minor=0)
    monkeypatch.setattr(info, "open_cuda_runtime", lambda: runtime(lambda: [device, device]))
    found = info.inspect_gpus()
    assert found.text == "Fake GPU (compute capability 9.0), Fake GPU (compute capability 9.0)"
    assert found.facts["devices"] == [{"name": "Fake GPU", "capability": "9.0"}] * 2


def test_a_runtime_that_finds_no_device_says_why(monkeypatch):
    def fail():
        raise CudaError("cudaGetDeviceCount: cudaErrorNoDevice (100)")

    monkeypatch.setattr(info, "open_cuda_runtime", lambda: runtime(fail))
    assert info.inspect_gpus() == info.Part(False, "cudaGetDeviceCount: cudaErrorNoDevice (100)")
    monkeypatch.setattr(info, "open_cuda_runtime", lambda: runtime(list))
    assert not info.inspect_gpus().usable


@pytest.mark.parametrize(("driver", "words"), [(13010, "driver for CUDA up to 13.1"), (0, "no driver")])
def test_the_driver_is_in_the_words_of_the_runtime(monkeypatch, driver, words):
    monkeypatch.setattr(info, "open_cuda_runtime", lambda: runtime(list, driver))
    assert info.inspect_cuda_runtime().text == f"13.0 at /lib/libcudart.so.13, {words}"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("2.8.1", DOUBT),
        ("2.9.0", ""),
        ("2.13.0+cpu", ""),
        ("2.14.1", ""),
        ("2.10rc1", ""),
        ("2.14a0", ""),
        ("2.8rc1", DOUBT),
        ("2.15.0a0+git", DOUBT),
        ("3.0", DOUBT),
        ("3", DOUBT),
        ("main", DOUBT),
        ("", DOUBT),
    ],
)
def test_versions_that_are_not_supported_are_doubted(found, words):
    assert info.support_note("torch", found) == words


def test_versions_tested_lie_in_the_range_supported():
    for name, versions in info.TESTED.items():
        assert not any(info.support_note(name, version) for version in versions)
    assert info.TESTED.keys() == info.SUPPORTED.keys()
