"""Machine code of the kernels for several architectures: 16-byte accesses, and no register spills.

The machine needs no GPU. The interpreter cannot test this. With narrower accesses a kernel reaches about a
quarter of a copy's speed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from codegen_probe import Job, compile_jobs
from pairwise import all_pairs

pytest.importorskip("triton")

from vitcache.triton_kernels.blocks import block_shape
from vitcache.triton_kernels.embed_rows import EmbedVariant
from vitcache.triton_kernels.rows import NO_LEVELS, LevelForm
from vitcache.triton_kernels.scatter_rows import ScatterVariant

pytestmark = pytest.mark.triton

# With 8 warps per program and 64 registers per thread, 4 programs fit on a multiprocessor.
REGISTER_BOUND = 64
ARCHS = (80, 90, 100)
WIDTHS = (2048, 3584, 3840, 4096, 5120)
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = [(F32, F32), (F16, F16), (BF16, BF16), (F32, BF16), (F32, F16), (BF16, F32), (F16, BF16)]
WITH_LEVELS = [
    {"form": LevelForm(is_listed=True)},
    {"form": LevelForm(has_narrow=True), "has_scale": True},
    {"form": LevelForm(is_packed=True, has_narrow=True), "store": BF16},
]
PLAIN = {"device": None, "store": None, "has_scale": False, "form": NO_LEVELS, "is_aligned": True}
OPTIONS: dict[Any, list[dict[str, Any]]] = {
    ScatterVariant: [
        *({"has_scale": scale, "has_holes": holes} for scale in (False, True) for holes in (False, True)),
        {"store": BF16},
        *WITH_LEVELS,
    ],
    EmbedVariant: [
        {},
        {"has_scale": True, "has_text_scale": True},
        {"store": BF16},
        *WITH_LEVELS,
    ],
}


def sample() -> list[Job]:
    """Variants in which every pair of architecture, dtypes, options and width occurs."""
    jobs = []
    for kind, options in OPTIONS.items():
        plain = PLAIN | ({"has_holes": False} if kind is ScatterVariant else {"has_text_scale": False})
        for case in all_pairs(dtypes=DTYPES, options=options, arch=ARCHS, hidden=WIDTHS):
            (source, target), hidden = case["dtypes"], case["hidden"]
            values = plain | {
                "source": source,
                "target": target,
                "hidden": hidden,
                "shape": block_shape(hidden, torch.device("cpu")),
                **({"weight": target} if kind is EmbedVariant else {}),
                **case["options"],
            }
            jobs.append(Job(case["arch"], kind(**values), disassembles=True))
    return jobs


@pytest.fixture(scope="module")
def compiled() -> list[tuple[Job, dict[str, Any]]]:
    jobs = sample()
    return list(zip(jobs, compile_jobs(jobs), strict=True))


def test_kernels_do_not_spill_registers(compiled: list[tuple[Job, dict[str, Any]]]) -> None:
    for job, resources in compiled:
        assert resources["local"] == resources["stack"] == 0, (job, resources)
        assert not [name for name in resources["memory"] if name.startswith(("LDL", "STL"))], (job, resources)
        assert resources["registers"] <= REGISTER_BOUND, (job, resources)


def test_kernels_load_and_store_rows_in_16_byte_accesses(compiled: list[tuple[Job, dict[str, Any]]]) -> None:
    for job, resources in compiled:
        loads = [access for access in resources["memory"] if access.startswith("LDG")]
        stores = [access for access in resources["memory"] if access.startswith("STG")]
        assert any(".128" in access for access in loads), (job, resources)
        assert stores, (job, resources)
        assert all(".128" in access for access in stores), (job, resources)
        # Only the loads of the table, 8 bytes, and of the id's low word, 4 bytes, may be narrower.
        assert not [access for access in loads if ".U16" in access], (job, resources)
        assert loads.count("LDG.E") == isinstance(job.variant, EmbedVariant), (job, resources)


def test_the_assembler_keeps_the_width_of_each_ptx_access(compiled: list[tuple[Job, dict[str, Any]]]) -> None:
    """test_variants.py reads the PTX alone."""
    for job, resources in compiled:
        for name, instruction in (("loads", "LDG"), ("stores", "STG")):
            widths = [
                16 if ".128" in access else 8 if ".64" in access else 4
                for access in resources["memory"]
                if access.startswith(instruction)
            ]
            assert set(widths) == set(resources[name]), (job, resources)
