"""Compile variants of the row kernels for GPU architectures, and print each one's resources as a JSON line.

``python codegen_probe.py FILE``, where FILE is a pickled list of `Job`; line n describes job n. A separate
program: with TRITON_INTERPRET, which the test process may have set, a kernel cannot be compiled. No GPU is
needed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

SUPPORT = Path(__file__).parent


class Job(NamedTuple):
    """Compile `variant` for an architecture such as 90. The disassembler takes five times as long."""

    arch: int
    variant: Any
    disassembles: bool = False


def compile_jobs(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The resources of each job, compiled by another program with a process per core."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SUPPORT), environment.get("PYTHONPATH")]))
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        file.write(pickle.dumps(list(jobs)))
        file.flush()
        command = [sys.executable, __file__, file.name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return [json.loads(line) for line in done.stdout.splitlines()]


def compile_variant(job: Job) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vitcache.triton_kernels.embed_rows import EmbedVariant, embed_rows_kernel
    from vitcache.triton_kernels.scatter_rows import scatter_rows_kernel

    variant = job.variant
    kernel = embed_rows_kernel if isinstance(variant, EmbedVariant) else scatter_rows_kernel
    constants = variant.constants()
    signature = {
        name: "constexpr" if name in constants else "fp32" if name.endswith("scale") else "i64"
        for name in kernel.arg_names
    }
    source = ASTSource(
        kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()}, {}
    )
    options = {"num_warps": variant.num_warps}
    compiled = triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = run_tool("cuobjdump", "-res-usage", file.name)
        code = run_tool("nvdisasm", "-c", file.name) if job.disassembles else ""
    counts = {key: int(re.search(rf"{key}:(\d+)", usage).group(1)) for key in ("REG", "STACK", "LOCAL")}
    return {
        "registers": counts["REG"],
        "stack": counts["STACK"],
        "local": counts["LOCAL"],
        "loads": access_bytes("ld", compiled.asm["ptx"]),
        "stores": access_bytes("st", compiled.asm["ptx"]),
        "memory": re.findall(r"\b((?:LDG|STG|LDL|STL)[.\w]*)", code),
    }


def run_tool(name: str, *arguments: str) -> str:
    """The output of an assembler tool in Triton's wheel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def access_bytes(operation: str, ptx: str) -> list[int]:
    """The bytes per thread of each access of global memory. ptxas keeps the width of a PTX access."""
    accesses = re.findall(rf"\b{operation}\.global[.\w:]*?(?:\.v(\d))?\.[a-z](\d+)\b", ptx)
    return [int(vector or 1) * int(bits) // 8 for vector, bits in accesses]


def main(path: Path) -> None:
    import triton  # noqa: F401 - before the processes are forked, so that each has it

    jobs = pickle.loads(path.read_bytes())
    with multiprocessing.get_context("fork").Pool(min(os.cpu_count() or 1, 8)) as pool:
        for resources in pool.imap(compile_variant, jobs, chunksize=4):
            print(json.dumps(resources), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
