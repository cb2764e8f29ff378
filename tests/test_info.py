"""`vitcache info`: each part is reported, and a missing or broken part raises no error."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from terminal_process import run_in_terminal

from vitcache import CudaError, info
from vitcache.__main__ import main
from vitcache.extras import EXTRAS
from vitcache.versions import SUPPORTED


def printed_lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_info_prints_the_state_of_each_part_in_80_columns(capsys):
    assert main(["info"]) == 0
    head, *lines = printed_lines(capsys)
    assert head.startswith("vitcache ")
    states = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert states == [part.state for part in info.collect().values()]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("without", [(), ("rich",)], ids=["rich", "plain"])
def test_info_in_a_terminal_prints_80_columns_with_rich_and_without(without):
    code, lines = run_in_terminal(["info"], without=without)
    assert code == 0
    text = " ".join(" ".join(lines).split())
    assert "native module" in text
    assert info.inspect_content_keys().text in text
    assert max(map(len, lines)) <= 80


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
    assert found.text.startswith(f"needs {module}, which is not installed")


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
    assert parts["triton"].state == "lacks"
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


def pretend_versions(monkeypatch, **versions):
    monkeypatch.setattr(info, "installed_version", lambda name: versions.get(name))


@pytest.mark.parametrize("package", ["triton", "transformers"])
def test_info_says_whether_a_version_is_in_the_supported_range(monkeypatch, package):
    first, last = SUPPORTED[package]
    pretend_versions(monkeypatch, **{package: f"{last}.1"})
    part = info.collect()[package]
    assert part.text == f"{last}.1; in the supported range {first} to {last}"
    assert part.state == "has"
    assert part.facts["supported"]
    pretend_versions(monkeypatch, **{package: "99.1"})
    part = info.collect()[package]
    assert f"99.1; NOT in the supported range {first} to {last}" in part.text
    assert part.state == "check"
    assert not part.facts["supported"]
    assert part.facts["range"] == f"{first} to {last}"


def test_info_says_whether_torch_is_in_the_supported_range(monkeypatch):
    torch = pytest.importorskip("torch")
    assert info.inspect_torch().state == "has"
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    part = info.inspect_torch()
    assert part.state == "check"
    assert "2.8.0" in part.text
    assert "NOT in the supported range " + " to ".join(SUPPORTED["torch"]) in part.text


def test_info_without_torch_names_the_first_supported_version(monkeypatch):
    monkeypatch.setattr(info, "installed_version", lambda package: None)
    monkeypatch.setattr(info, "SUPPORTED", {"torch": ("7.1", "7.4")})
    assert info.inspect_torch().text.endswith("pip install 'torch>=7.1'")


def test_info_torch_for_rocm_is_said_to_be_unsupported(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    part = info.inspect_torch()
    assert part.state == "lacks"
    assert "built for ROCm 6.4: AMD GPUs are not supported" in part.text


@pytest.mark.parametrize(("system", "name"), [("Darwin", "macOS"), ("Windows", "Windows")])
def test_info_on_another_system_says_that_it_is_not_supported(monkeypatch, system, name):
    monkeypatch.setattr(info.platform, "system", lambda: system)
    part = info.inspect_python()
    assert part.state == "lacks"
    assert f"on {name} " in part.text
    assert "not supported, vitcache runs on Linux" in part.text


def test_info_without_triton_is_fine_with_torch_for_the_cpu_only(monkeypatch):
    pretend_versions(monkeypatch)
    on_cpu, on_cuda = info.inspect_triton(is_cpu_build=True), info.inspect_triton(is_cpu_build=False)
    assert on_cpu.state == "optional"
    assert "torch is built for the CPU" in on_cpu.text
    assert on_cuda.state == "lacks"
    assert "torch for CUDA brings it" in on_cuda.text


@pytest.mark.parametrize("package", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("installed", "state", "text"),
    [
        (None, "optional", "pip install 'vitcache[{package}]'"),
        ("{tested}+cpu", "has", "the tested version"),
        ("0.1.0", "check", "NOT tested: the plug-in starts with {name} {tested} only"),
    ],
)
def test_info_says_whether_the_version_of_an_engine_was_tested(monkeypatch, package, installed, state, text):
    names = {"package": package, "name": info.NAMES[package], "tested": info.ENGINES[package][0]}
    pretend_versions(monkeypatch, **{package: installed and installed.format(**names)})
    part = info.inspect_engine(package)
    assert part.state == state
    assert text.format(**names) in part.text


def test_info_names_packages_as_pip_does(monkeypatch):
    pretend_versions(monkeypatch)
    text = " ".join(part.text for part in info.collect().values())
    packages = [package for packages in EXTRAS.values() for package in packages]
    assert all(package in text for package in packages if package not in ("vllm", "sglang"))
    assert not any(module in text for module in ("skimage", "sklearn", "PIL", "prometheus_client"))


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


def test_info_is_imported_without_torch():
    command = "import sys, vitcache.info; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
