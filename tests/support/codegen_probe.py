"""Compile the row kernels for several GPU architectures, and print each kernel's resources as a JSON line.

A separate program: with TRITON_INTERPRET, which the test process may have set, a kernel cannot be compiled.
No GPU is needed.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from pairwise import all_pairs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vitcache.triton_kernels.blocks import block_shape
from vitcache.triton_kernels.embed_rows import embed_rows_kernel
from vitcache.triton_kernels.rows import NO_LEVELS, TRITON_DTYPES, LevelForm
from vitcache.triton_kernels.scatter_rows import scatter_rows_kernel

HIDDEN = 4096


def tool(name: str) -> Path:
    """The path of an assembler tool in Triton's wheel."""
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def compile_kernel(kernel, arch: int, source: torch.dtype, target: torch.dtype, constants: dict[str, object]):
    block, num_warps = block_shape(HIDDEN, torch.device("cpu"))
    constants = {
        "SOURCE": TRITON_DTYPES[source],
        "STORE": None,
        "TARGET": TRITON_DTYPES[target],
        "HIDDEN": HIDDEN,
        **NO_LEVELS.constants(),
        "ALIGNED": True,
        "BLOCK": block,
        **({"WEIGHT": TRITON_DTYPES[target]} if "WEIGHT" in kernel.arg_names else {}),
        **constants,
    }
    signature = {
        name: "constexpr" if name in constants else "fp32" if name.endswith("scale") else "i64"
        for name in kernel.arg_names
    }
    compiled = ASTSource(
        kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, {}
    )
    return triton.compile(compiled, target=GPUTarget("cuda", arch, 32), options={"num_warps": num_warps})


def report(cubin: bytes) -> dict[str, object]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True
        )
        sass = subprocess.run(
            [tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True
        ).stdout
    counts = {
        key: int(re.search(rf"{key}:(\d+)", usage.stdout + usage.stderr).group(1))
        for key in ("REG", "STACK", "LOCAL")
    }
    memory = re.findall(r"\b((?:LDG|STG|LDL|STL)[.\w]*)", sass)
    return {"registers": counts["REG"], "stack": counts["STACK"], "local": counts["LOCAL"], "memory": memory}


def main() -> None:
    plain, scaled = {"HAS_SCALE": False}, {"HAS_SCALE": True}
    stored = {"HAS_SCALE": False, "STORE": TRITON_DTYPES[torch.bfloat16]}
    with_levels = [
        (plain, LevelForm(is_listed=True)),
        (scaled, LevelForm(has_narrow=True)),
        (stored, LevelForm(is_packed=True, has_narrow=True)),
    ]
    kernels = {
        "scatter": (
            scatter_rows_kernel,
            [{**scale, "HAS_HOLES": holes} for scale in (plain, scaled) for holes in (False, True)]
            + [{**stored, "HAS_HOLES": False}]
            + [{**constants, "HAS_HOLES": False, **form.constants()} for constants, form in with_levels],
        ),
        "embed": (
            embed_rows_kernel,
            [{**scale, "HAS_TEXT_SCALE": scale is scaled} for scale in (plain, scaled, stored)]
            + [{**constants, "HAS_TEXT_SCALE": False, **form.constants()} for constants, form in with_levels],
        ),
    }
    casts = [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
    ]
    dtypes = [*((dtype, dtype) for dtype in TRITON_DTYPES), *casts]
    for name, (kernel, variants) in kernels.items():
        for case in all_pairs(dtypes=dtypes, constants=variants, arch=(80, 90, 100)):
            source, target = case["dtypes"]
            compiled = compile_kernel(kernel, case["arch"], source, target, case["constants"])
            line = {
                "kernel": name,
                "arch": case["arch"],
                "source": str(source),
                "target": str(target),
                **{key: str(value) for key, value in case["constants"].items()},
            }
            print(json.dumps({**line, **report(compiled.asm["cubin"])}), flush=True)


if __name__ == "__main__":
    main()
