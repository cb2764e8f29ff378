"""What importing the package costs and touches: asked in processes of their own, far from the checkout."""

import ast
import json
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import vitcache
from vitcache import CudaError

# transformers is needed for these two alone.
ADAPTER_NAMES = {"Attachment", "attach"}
USE_ALL_NAMES = f"[getattr(vitcache, name) for name in vitcache.__all__ if name not in {ADAPTER_NAMES}]"


def answer(code, directory):
    """What `code` prints, as JSON, in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_import_alone_loads_nothing_heavy(tmp_path):
    loaded = answer("import vitcache, sys, json; print(json.dumps(list(sys.modules)))", tmp_path)
    assert not {"torch", "numpy", "triton", "transformers", "blake3", "vitcache._native"} & set(loaded)


def test_public_names_load_no_optional_package_and_leave_cuda_alone(tmp_path):
    loaded, initialised = answer(
        f"import vitcache, sys, json; {USE_ALL_NAMES}; import torch; "
        "print(json.dumps([list(sys.modules), torch.cuda.is_initialized()]))",
        tmp_path,
    )
    assert not {"triton", "transformers", "matplotlib", "rich", "skimage", "sklearn", "PIL"} & set(loaded)
    assert not initialised


def test_import_is_cheap_beyond_torch(tmp_path):
    # Processor time, and the best of ten: a busy neighbour on the same core slows it.
    code = (
        "import json, time, torch, numpy; start = time.process_time(); "
        f"import vitcache; {USE_ALL_NAMES}; print(json.dumps(time.process_time() - start))"
    )
    assert any(answer(code, tmp_path) < 0.15 for _ in range(10))


def test_folders_of_the_checkout_are_installed_inside_the_package_only(tmp_path):
    found = answer(
        "import json; from importlib.util import find_spec; print(json.dumps([find_spec(name) is not None "
        "for name in ('triton_kernels', 'bench', 'vitcache.triton_kernels', 'vitcache.bench')]))",
        tmp_path,
    )
    assert found == [False, False, True, True]


def test_data_files_are_named_so_that_they_travel_with_the_package():
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


def test_every_public_name_is_there():
    assert sorted(vitcache.__all__) == vitcache.__all__
    assert set(vitcache.__all__) <= set(dir(vitcache))
    for name in set(vitcache.__all__) - ADAPTER_NAMES:
        assert getattr(vitcache, name) is not None


def public_names():
    """Every public name, and the module that defines it."""
    return {name: module for module, names in vitcache._NAMES.items() for name in names}


def test_type_checkers_see_the_names_that_there_are():
    tree = ast.parse(Path(vitcache.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module for node in block.body for alias in node.names if alias.name == alias.asname
    }
    assert seen == public_names()


@pytest.mark.parametrize("room", ["cache", "keys", "pages", "pipeline", "placement", "ring"])
def test_a_room_gives_the_public_names_that_are_defined_in_it(room):
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
def test_a_path_that_is_in_print_stays(module, name):
    if module.startswith("vitcache.adapters.transformers"):
        pytest.importorskip("transformers")
    assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("name", ["Span", "Chunk", "Item", "Shadow", "Prefetch", "content_key", "KeyAliases"])
def test_a_name_that_needs_no_native_module_comes_without_it(name, tmp_path):
    code = (
        "import json, sys; sys.modules['vitcache._native'] = None; import vitcache; "
        f"vitcache.{name}; print(json.dumps('torch' in sys.modules))"
    )
    assert answer(code, tmp_path) is (name != "Prefetch")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Spam'"):
        vitcache.Spam  # noqa: B018


def test_a_process_that_placed_leases_ends_well(tmp_path):
    code = (
        "import json, torch, vitcache; "
        "cache = vitcache.EmbeddingCache(8, device='cpu', device_bytes=1 << 14); "
        "cache.put(bytes(32), torch.ones(3, 8)); out = torch.zeros(5, 8); "
        "vitcache.scatter_embeddings(out, [cache.get(bytes(32))], [1]); print(json.dumps(out.sum().item()))"
    )
    assert answer(code, tmp_path) == 24.0  # `answer` checks the exit code: a crash at the end would be one


def test_native_errors_arrive_as_the_public_exception(monkeypatch):
    if find_spec("vitcache._native") is None:
        pytest.skip("the native module is not built")
    from vitcache._native import CudaRuntime

    monkeypatch.setenv("VITCACHE_CUDART", "/nonexistent/libcudart.so")
    runtime = CudaRuntime([])
    assert not runtime.available
    with pytest.raises(CudaError, match=r"no CUDA runtime: .*/nonexistent/libcudart\.so"):
        runtime.devices()
    assert issubclass(CudaError, RuntimeError)
