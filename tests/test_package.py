"""Imports of the package: their time, the modules that they load, and the names that they define.

Tests of an import execute it in a new process, outside of the checkout.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import entry_points, metadata, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vitcache
from vitcache import CudaError
from vitcache.__main__ import main
from vitcache.versions import SUPPORTED, major_minor

# Only these names need transformers.
ADAPTER_NAMES = {"Attachment", "InvalidateCallback", "attach"}
USE_ALL_NAMES = f"[getattr(vitcache, name) for name in vitcache.__all__ if name not in {ADAPTER_NAMES}]"


def run_code(code, directory):
    """Run `code` in a new interpreter; return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_import_of_vitcache_loads_neither_torch_nor_the_native_module(tmp_path):
    loaded = run_code("import vitcache, sys, json; print(json.dumps(list(sys.modules)))", tmp_path)
    assert not {"torch", "numpy", "triton", "transformers", "blake3", "vitcache._native"} & set(loaded)


def test_public_modules_are_attributes_of_vitcache_after_its_import_alone(tmp_path):
    for name in ("metrics.CacheCollector", "tracing.enable"):
        found = run_code(f"import json, vitcache; print(json.dumps(vitcache.{name}.__name__))", tmp_path)
        assert found == name.partition(".")[2]
        assert name.partition(".")[0] in dir(vitcache)


def test_public_names_load_no_optional_package_and_do_not_initialize_cuda(tmp_path):
    loaded, initialized = run_code(
        f"import vitcache, sys, json; {USE_ALL_NAMES}; import torch; "
        "print(json.dumps([list(sys.modules), torch.cuda.is_initialized()]))",
        tmp_path,
    )
    assert not {"triton", "transformers", "matplotlib", "rich", "skimage", "sklearn", "PIL"} & set(loaded)
    assert not initialized


def test_import_of_all_public_names_takes_little_time_beyond_torch(tmp_path):
    # Processor time, best of ten runs: other processes on the same core slow a run. A garbage collection of
    # all objects of torch, 80 ms, happens after a certain number of new objects.
    code = (
        "import gc, json, time, torch, numpy; gc.disable(); start = time.process_time(); "
        f"import vitcache; {USE_ALL_NAMES}; print(json.dumps(time.process_time() - start))"
    )
    assert any(run_code(code, tmp_path) < 0.15 for _ in range(10))


def test_folders_of_the_checkout_are_importable_inside_vitcache_only(tmp_path):
    found = run_code(
        "import json; from importlib.util import find_spec; print(json.dumps([find_spec(name) is not None "
        "for name in ('triton_kernels', 'bench', 'vitcache.triton_kernels', 'vitcache.bench')]))",
        tmp_path,
    )
    assert found == [False, False, True, True]


def test_python_in_the_root_of_the_checkout_finds_all_packages():
    root = Path(__file__).parent.parent
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    code = "import vitcache.bench.plot, vitcache.triton_kernels as k; print(vitcache.__file__, *k.__path__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    package, kernels = (Path(path).resolve() for path in done.stdout.split())
    assert (package, kernels) == (root / "vitcache" / "__init__.py", root / "triton_kernels")


def test_package_data_patterns_match_every_data_file():
    root = Path(__file__).parent.parent
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, folder in (
        ("vitcache", root / "vitcache"),
        ("vitcache.triton_kernels", root / "triton_kernels"),
    ):
        files = [path for path in folder.iterdir() if path.suffix in (".json", ".typed", ".pyi")]
        assert files
        for path in files:
            assert any(path.match(pattern) for pattern in patterns[package]), path


def test_description_of_the_package_has_whole_addresses_only():
    text = metadata("vitcache").get_payload()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert [target for target in targets if not target.startswith("https://")] == []
    version = vitcache.__version__
    assert f"(https://github.com/vitcache/vitcache/raw/v{version}/docs/images/chat.png)" in text
    assert (
        f"(https://github.com/vitcache/vitcache/blob/v{version}/docs/vllm.md#after-a-change-of-the-weights)"
        in text
    )


def test_installed_requirements_are_the_supported_versions_and_no_triton():
    needs = [Requirement(need) for need in requires("vitcache")]
    always = {need.name: need for need in needs if need.marker is None}
    assert always.keys() == {"torch", "numpy", "blake3"}
    extras = [need for need in needs if need.name == "transformers"]
    assert len(extras) == 2  # of the extras `transformers` and `demo`
    for need, package in ((always["torch"], "torch"), *((need, "transformers") for need in extras)):
        first, last = SUPPORTED[package]
        assert all(need.specifier.contains(version) for version in (first, f"{first}.1", last, f"{last}.9"))
        major, minor = major_minor(first)
        assert not need.specifier.contains(f"{major}.{minor - 1}.9")
    # A new torch is a warning of `vitcache info`; a new transformers may break the adapter.
    assert always["torch"].specifier.contains("99")
    assert not any(need.specifier.contains("99") for need in extras)


def test_console_script_runs_the_command_line():
    [script] = entry_points(group="console_scripts", name="vitcache")
    assert script.load() is main


def test_public_names_are_sorted_and_can_be_imported():
    assert sorted(vitcache.__all__) == vitcache.__all__
    assert set(vitcache.__all__) <= set(dir(vitcache))
    for name in set(vitcache.__all__) - ADAPTER_NAMES:
        assert getattr(vitcache, name) is not None


def public_names():
    """Return {public name: module that defines it}."""
    return {name: module for module, names in vitcache._NAMES.items() for name in names}


def test_type_checking_imports_are_the_public_names():
    tree = ast.parse(Path(vitcache.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module for node in block.body for alias in node.names if alias.name == alias.asname
    }
    assert imported == public_names() | dict.fromkeys(vitcache._SUBMODULES, "vitcache")


@pytest.mark.parametrize("room", ["cache", "keys", "pages", "pipeline", "placement", "ring"])
def test_room_exports_the_public_names_that_it_defines(room):
    package = import_module(f"vitcache.{room}")
    public = {name for name, module in public_names().items() if module.startswith(f"vitcache.{room}.")}
    assert public <= set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith(f"vitcache.{room}.")
    with pytest.raises(AttributeError, match="no attribute 'Spam'"):
        package.Spam  # noqa: B018


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("vitcache.adapters.transformers", "ChunkedPrefill"),
        ("vitcache.adapters.transformers", "image_items"),
        ("vitcache.adapters.transformers", "video_items"),
        ("vitcache.adapters.transformers", "vision_pipeline"),
        ("vitcache.adapters.distributed", "agree_over"),
        ("vitcache.metrics", "CacheCollector"),
        ("vitcache.bench.plot", "main"),
        ("vitcache.cache", "EmbeddingCache"),
        ("vitcache.pipeline", "VisionPipeline"),
        ("vitcache.ring", "PinnedRing"),
        ("vitcache.keys", "content_key"),
        ("vitcache.placement", "scatter_embeddings"),
    ],
)
def test_documented_import_path_is_callable(module, name):
    if module.startswith("vitcache.adapters.transformers"):
        pytest.importorskip("transformers")
    assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("name", ["Span", "Chunk", "Item", "Shadow", "content_key", "KeyAliases"])
def test_public_name_is_imported_without_the_native_module(name, tmp_path):
    code = (
        "import json, sys; sys.modules['vitcache._native'] = None; import vitcache; "
        f"vitcache.{name}; print(json.dumps('torch' in sys.modules))"
    )
    assert run_code(code, tmp_path) is (name != "Prefetch")


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Spam'"):
        vitcache.Spam  # noqa: B018


def test_process_that_placed_a_lease_exits_with_0(tmp_path):
    code = (
        "import json, torch, vitcache; "
        "cache = vitcache.EmbeddingCache(8, device='cpu', device_bytes=1 << 14); "
        "cache.put(bytes(32), torch.ones(3, 8)); out = torch.zeros(5, 8); "
        "vitcache.scatter_embeddings(out, [cache.get(bytes(32))], [1]); print(json.dumps(out.sum().item()))"
    )
    assert run_code(code, tmp_path) == 24.0  # `run_code` raises if the process crashes at exit


def test_native_error_is_raised_as_the_public_cuda_error(monkeypatch):
    if find_spec("vitcache._native") is None:
        pytest.skip("the native module is not built")
    from vitcache._native import CudaRuntime

    monkeypatch.setenv("VITCACHE_CUDART", "/nonexistent/libcudart.so")
    runtime = CudaRuntime([])
    assert not runtime.available
    with pytest.raises(CudaError, match=r"no CUDA runtime: .*/nonexistent/libcudart\.so"):
        runtime.devices()
    assert issubclass(CudaError, RuntimeError)
