"""The facts of the interpreter and the machine, from a process that imports torch; and the build."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from gpu_runner.processes import run
from gpu_runner.settings import Settings

# Printed as JSON by the interpreter that runs the parts. `error` names a fact that is missing.
QUESTIONS = """
import json, os, platform, sys
def answer(**facts):
    print(json.dumps(facts)); sys.exit()
try:
    import torch
except ImportError as error:
    answer(error=f"vitcache needs torch 2.9 or newer, {sys.executable} has none ({error})")
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9):
    answer(error=f"vitcache needs torch 2.9 or newer, {sys.executable} has {torch.__version__}")
dry = "VITCACHE_GPU_DRY" in os.environ
if not dry and not torch.cuda.is_available():
    name = f"torch {torch.__version__} of {sys.executable}"
    answer(error=f"{name} finds no CUDA device; DRY=1 runs the same on the CPU")
from importlib.util import find_spec
def find_why_no_vllm():
    if find_spec("vllm") is None:
        return f"{sys.executable} has no vLLM"
    try:
        from vllm.platforms import current_platform
    except Exception as error:
        return f"vLLM cannot be imported: {type(error).__name__}: {error}"
    return None if current_platform.is_cuda() else f"vLLM of {sys.executable} does not run on CUDA"
why_no_vllm = "a dry run has no GPU" if dry else find_why_no_vllm()
why_no_sglang = "a dry run has no GPU" if dry else None
if not dry and find_spec("sglang") is None:
    why_no_sglang = f"{sys.executable} has no SGLang"
device = f"cpu {platform.machine()}" if dry else torch.cuda.get_device_name()
has_xdist = find_spec("xdist") is not None
answer(
    device=device,
    torch=torch.__version__,
    has_xdist=has_xdist,
    why_no_vllm=why_no_vllm,
    why_no_sglang=why_no_sglang,
)
"""
SOURCES = ("vitcache", "triton_kernels", "csrc", "bench", "tests")


class NotReady(Exception):
    """The run cannot start; the message says why."""


class OutOfTime(Exception):
    """The budget ended the run before its first part."""


def ask(settings: Settings, limit_s: float) -> dict[str, Any]:
    """Return device, torch, commit, whether pytest-xdist is installed, and why vLLM and SGLang cannot run.

    Raises
    ------
    NotReady
        If torch is missing or too old, or finds no CUDA device.
    OutOfTime
        If that takes longer than `limit_s` seconds. So does each function of this module with a limit.
    """
    output = _output_of(settings, ["-c", QUESTIONS], "torch cannot be imported", limit_s)
    facts: dict[str, Any] = json.loads(output)
    if "error" in facts:
        raise NotReady(facts["error"])
    return {**facts, "commit": commit_of(settings)}


def commit_of(settings: Settings) -> str:
    """Return COMMIT, else the commit of the git repository, else a digest of the sources.

    A borrowed machine has only the files.
    """
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]
    command = ["git", "-C", str(settings.root), "describe", "--always", "--dirty", "--abbrev=12"]
    if shutil.which("git"):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((settings.root / folder).rglob("*")):
            if path.suffix in (".py", ".cpp", ".h") or path.name == "blocks.json":
                digest.update(f"{path.relative_to(settings.root)}\n".encode() + path.read_bytes())
    return f"sources-{digest.hexdigest()[:12]}"


def build(settings: Settings, write: Callable[[bytes], object], limit_s: float) -> None:
    """Build the package without network and install it in build/gpu. The machine's Python is not changed.

    Raises
    ------
    NotReady
        If the build fails.
    """
    for folder in [*settings.root.glob("build/lib.*"), *settings.root.glob("build/bdist.*")]:
        shutil.rmtree(folder)  # the package would include files of an earlier build, too
    # Without an earlier build in PYTHONPATH.
    env = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.environ.get("VITCACHE_PYTHONPATH", "")}
    env["CMAKE_ARGS"] = f"-DVITCACHE_STAND_IN_FAULTS=ON {env.get('CMAKE_ARGS', '')}"
    pip = [settings.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-index"]
    options = ["--no-build-isolation", "--no-deps", "--upgrade", "--target", "build/gpu", "."]
    ended = run([*pip, *options], env=env, directory=settings.root, write=write, limit_s=limit_s, grace_s=1.0)
    if ended.is_cut:
        raise OutOfTime(f"the build is not complete, its output is in {settings.log}")
    if ended.code:
        raise NotReady(f"the build failed, its output is above and in {settings.log}")


def list_benches(settings: Settings, limit_s: float) -> dict[str, bool]:
    """Return, for each bench, whether it declares to measure a GPU.

    Raises
    ------
    NotReady
        If the benches cannot be imported.
    """
    command = ["-m", "vitcache", "bench", "--list"]
    benches: dict[str, bool] = json.loads(
        _output_of(settings, command, "the benches cannot be listed", limit_s)
    )
    return benches


def _output_of(settings: Settings, arguments: list[str], failure: str, limit_s: float) -> str:
    """Return the last line that a command of the interpreter prints."""
    if limit_s <= 0:
        raise OutOfTime("the time is over")
    try:
        done = subprocess.run(
            [settings.python, *arguments],
            capture_output=True,
            text=True,
            env=settings.environment(),
            cwd=settings.root,
            timeout=None if limit_s == float("inf") else limit_s,
        )
    except subprocess.TimeoutExpired as error:
        raise OutOfTime(f"{settings.python} needs more than {limit_s:.0f} s to import torch") from error
    if done.returncode:
        raise NotReady(f"{failure}:\n{done.stderr}")
    return done.stdout.splitlines()[-1]
