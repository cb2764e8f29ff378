"""Every variant that the GPU tests and the GPU benches launch: compiled, checked, and listed by a warm-up.

The launches themselves make the list: the tests and the full cases of the benches run on the CPU, with small
counts and full widths (`launch_recorder`). No GPU is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from codegen_probe import SUPPORT, Job, compile_jobs

pytest.importorskip("triton")
pytest.importorskip("transformers")

from gpu_runner.parts import ELSEWHERE
from launch_recorder import read, warm_up_arguments

from vitcache import warm_up
from vitcache.placement import dispatch, kernel_variants
from vitcache.triton_kernels import blocks
from vitcache.triton_kernels.blocks import BlockShape, block_shape
from vitcache.triton_kernels.embed_rows import EmbedVariant
from vitcache.triton_kernels.launch import Variant

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]

ROOT = SUPPORT.parents[1]
REGISTER_BOUND = 64
VECTOR_BYTES, WARP = 16, 32


class Recorded(NamedTuple):
    """The variants, each with the test, or the bench and its case, that launched it first."""

    tests: dict[Variant, str]
    benches: dict[Variant, str]

    @property
    def all(self) -> dict[Variant, str]:
        return self.benches | self.tests


def gpu_test_paths() -> list[str]:
    """The paths of the tests that `make gpu` runs."""
    return ["tests/gpu", *ELSEWHERE]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("launches")
    of_tests, of_benches = folder / "tests.pickle", folder / "benches.pickle"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])),
        "VITCACHE_GPU_DRY": "1",
        "TRITON_INTERPRET": "1",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # some virtual machines report AMX and cannot run its bfloat16
    }
    plugin = ["-m", "pytest", "-q", "-m", "gpu", "-p", "gpu_test_launches", "-p", "no:cacheprovider"]
    commands = (
        [*plugin, "--recorded-launches", of_tests, *gpu_test_paths()],
        [SUPPORT / "bench_launches.py", of_benches],
    )
    running = []
    for number, command in enumerate(commands):
        output = (folder / f"output-{number}").open("w+")
        started = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        running.append((started, output))
    for started, output in running:
        code = started.wait()
        output.seek(0)
        assert code == 0, output.read()[-8000:]
    return Recorded(read(of_tests), read(of_benches))


def on_each_device(variant: Any) -> set[Variant]:
    """The variant with each block shape that a bench has measured for its width, and with its own."""
    measured = {
        BlockShape(*shapes[str(variant.hidden)])
        for shapes in blocks.read_table().values()
        if str(variant.hidden) in shapes
    }
    return {variant._replace(shape=shape) for shape in (variant.shape, *measured)}


@pytest.fixture(scope="module")
def compiled(recorded: Recorded) -> list[tuple[Any, dict[str, Any]]]:
    variants = sorted({other for variant in recorded.all for other in on_each_device(variant)}, key=repr)
    resources = compile_jobs([Job(90, variant) for variant in variants])
    return list(zip(variants, resources, strict=True))


def vector_elements(variant: Any) -> int:
    """The elements of a row in one 16-byte access of the narrowest dtype."""
    dtypes = [variant.source, variant.target, *filter(None, [variant.store])]
    if isinstance(variant, EmbedVariant):
        dtypes.append(variant.weight)
    return VECTOR_BYTES // min(dtype.itemsize for dtype in dtypes)


def is_wide(variant: Any) -> bool:
    """Whether a block has a whole 16-byte access for each thread."""
    threads = WARP * variant.shape.num_warps
    return bool(variant.shape.block >= threads * vector_elements(variant))


def test_gpu_tests_and_benches_launch_both_kernels_at_the_sizes_of_a_gpu(recorded: Recorded) -> None:
    for launched, widths in (
        (recorded.tests, {3840, 4096}),
        (recorded.benches, {2048, 3584, 3840, 4096, 5120, 8192}),
    ):
        assert {type(variant).__name__ for variant in launched} == {"EmbedVariant", "ScatterVariant"}
        assert widths <= {variant.hidden for variant in launched}
    assert any(variant.form.is_listed for variant in recorded.tests)


def test_variants_do_not_spill_registers(compiled: list[tuple[Any, dict[str, Any]]]) -> None:
    for variant, resources in compiled:
        assert resources["local"] == resources["stack"] == 0, (variant, resources)
        if variant.shape == block_shape(variant.hidden, torch.device("cpu")):
            assert resources["registers"] <= REGISTER_BOUND, (variant, resources)


def test_variants_with_aligned_rows_move_them_in_16_byte_accesses(
    compiled: list[tuple[Any, dict[str, Any]]],
) -> None:
    for variant, resources in compiled:
        if not variant.is_aligned or variant.hidden < WARP * vector_elements(variant):
            continue  # a row of less than one access per lane
        assert is_wide(variant), f"{variant} has more threads than 16-byte accesses"
        assert set(resources["stores"]) == {VECTOR_BYTES}, (variant, resources)
        # The table and the addresses of listed levels are read in 8 bytes, the low word of an id in 4.
        assert set(resources["loads"]) <= {VECTOR_BYTES, 8, 4}, (variant, resources)
        assert resources["loads"].count(4) == isinstance(variant, EmbedVariant), (variant, resources)


def test_variants_are_listed_by_the_warm_up_that_describes_their_call(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)
    listed: dict[str, set[Variant]] = {}
    for variant, label in recorded.all.items():
        if variant.shape != block_shape(variant.hidden, torch.device("cpu")):
            continue  # a bench or a test passed a block shape to the launcher, which no placement does
        arguments = warm_up_arguments(variant)
        key = json.dumps(arguments, default=str, sort_keys=True)
        if key not in listed:
            loaded: list[Variant] = []
            monkeypatch.setattr(kernel_variants, "load", loaded.extend)
            warm_up("cpu", **arguments)
            listed[key] = set(loaded)
        assert variant in listed[key], f"warm_up({arguments}) does not list {variant} of {label}"


def test_gpu_test_paths_exist() -> None:
    assert all(Path(ROOT, path).exists() for path in gpu_test_paths())
