"""`python -m vitcache info`: each part is reported, and a missing or broken part raises no error."""

import json
import sys
from types import SimpleNamespace

import pytest

from vitcache import CudaError, info
from vitcache.__main__ import main


def printed_lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_info_prints_one_line_for_each_part(capsys):
    assert main(["info"]) == 0
    head, *parts = printed_lines(capsys)
    assert head.startswith("vitcache ")
    assert len(parts) == len(info.collect())
    assert all(line.startswith(("  has    ", "  lacks  ")) for line in parts)


def test_info_json_contains_the_text_of_each_part(capsys):
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
def test_info_missing_module_is_reported(monkeypatch, module, part):
    monkeypatch.setitem(sys.modules, module, None)
    found = info.collect()[part]
    assert not found.usable
    assert found.text == f"needs {module}, which is not installed"


def test_info_native_module_that_was_not_built_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "vitcache._native", None)
    found = info.collect()["native_module"]
    assert not found.usable
    assert found.text.startswith("not built")


def test_info_native_module_of_an_old_version_is_to_be_rebuilt(monkeypatch):
    monkeypatch.setattr(info, "__version__", "9.9.9")
    found = info.inspect_native_module()
    assert not found.usable
    assert "rebuild it" in found.text


def test_info_broken_part_is_reported_and_other_parts_are_inspected(monkeypatch):
    def broken(name):
        raise OSError(f"cannot read {name}")

    monkeypatch.setattr(info, "installed_version", broken)
    parts = info.collect()
    assert parts["triton"] == info.Part(False, "OSError: cannot read triton")
    assert parts["python"].usable


def test_info_package_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setattr(info, "installed_version", lambda name: None)
    parts = info.collect()
    assert "pip install 'vitcache[transformers]'" in parts["transformers"].text
    assert "not prometheus-client (pip install 'vitcache[metrics]')" in parts["extras"].text


def test_info_without_a_cuda_runtime_reports_the_reason(monkeypatch):
    monkeypatch.setenv("VITCACHE_NO_CUDA", "1")
    parts = info.collect()
    assert not parts["cuda_runtime"].usable
    assert "VITCACHE_NO_CUDA" in parts["cuda_runtime"].text
    assert not parts["gpu"].usable


def make_runtime(devices, driver=13010):
    return SimpleNamespace(
        available=True,
        searched=[],
        path="/lib/libcudart.so.13",
        version=lambda: 13000,
        driver_version=lambda: driver,
        devices=devices,
    )


def test_info_gpu_text_contains_name_and_compute_capability(monkeypatch):
    device = SimpleNamespace(name="Fake GPU", major=9, minor=0)
    monkeypatch.setattr(info, "open_cuda_runtime", lambda: make_runtime(lambda: [device, device]))
    found = info.inspect_gpus()
    assert found.text == "Fake GPU (compute capability 9.0), Fake GPU (compute capability 9.0)"
    assert found.facts["devices"] == [{"name": "Fake GPU", "capability": "9.0"}] * 2


def test_info_without_a_gpu_reports_the_error_of_the_runtime(monkeypatch):
    def fail():
        raise CudaError("cudaGetDeviceCount: cudaErrorNoDevice (100)")

    monkeypatch.setattr(info, "open_cuda_runtime", lambda: make_runtime(fail))
    assert info.inspect_gpus() == info.Part(False, "cudaGetDeviceCount: cudaErrorNoDevice (100)")
    monkeypatch.setattr(info, "open_cuda_runtime", lambda: make_runtime(list))
    assert not info.inspect_gpus().usable


@pytest.mark.parametrize(("driver", "text"), [(13010, "driver for CUDA up to 13.1"), (0, "no driver")])
def test_info_cuda_runtime_text_contains_the_driver(monkeypatch, driver, text):
    monkeypatch.setattr(info, "open_cuda_runtime", lambda: make_runtime(list, driver))
    assert info.inspect_cuda_runtime().text == f"13.0 at /lib/libcudart.so.13, {text}"
