"""What this build and this machine have and lack, in words: `python -m vitcache info`.

Each part is looked at by itself, and one that is missing or broken is an answer, never an error.
"""

import argparse
import json
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from vitcache._version import __version__
from vitcache.device.cuda_runtime import open_cuda_runtime
from vitcache.errors import CudaError

# The first and the last version, both included, and those of them that the tests are run with.
SUPPORTED = {"torch": ("2.9", "2.14"), "triton": ("3.6", "3.9"), "transformers": ("5.17", "5.23")}
TESTED = {"torch": ("2.13",), "triton": ("3.6", "3.9"), "transformers": ("5.17", "5.23")}

EXTRAS = {
    "demo": ("rich", "matplotlib", "scikit-image", "scikit-learn", "pillow"),
    "metrics": ("prometheus-client",),
}


@dataclass(frozen=True)
class Part:
    """One thing that is there or not, the words for it, and its facts for a program to read."""

    have: bool
    words: str
    facts: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same for a program to read")


def run(args: argparse.Namespace) -> int:
    parts = collect()
    if args.json:
        facts = {name: {"have": part.have, "words": part.words, **part.facts} for name, part in parts.items()}
        print(json.dumps({"vitcache": __version__, **facts}, indent=2))
    else:
        print(f"vitcache {__version__}")
        for name, part in parts.items():
            print(f"  {'has  ' if part.have else 'lacks'}  {name.replace('_', ' ')}: {part.words}")
    return 0


def collect() -> dict[str, Part]:
    """Look at every part; torch comes first because the CUDA runtime that it loads is the one to use."""
    looks: dict[str, Callable[[], Part]] = {
        "python": look_at_python,
        "torch": look_at_torch,
        "triton": lambda: look_at_package("triton", "the kernels for CUDA need it: pip install triton"),
        "native_module": look_at_native_module,
        "cuda_runtime": look_at_cuda_runtime,
        "gpu": look_at_gpus,
        "content_keys": look_at_keys,
        "transformers": lambda: look_at_package(
            "transformers", "vitcache.attach and the demo need it: pip install 'vitcache[transformers]'"
        ),
        "extras": look_at_extras,
    }
    return {name: look_safely(look) for name, look in looks.items()}


def look_safely(look: Callable[[], Part]) -> Part:
    try:
        return look()
    except ModuleNotFoundError as error:
        return Part(False, f"needs {error.name}, which is not installed")
    except Exception as error:
        # A package can fail in any way while it is imported; the report goes on with that package's words.
        return Part(False, f"{type(error).__name__}: {error}")


def look_at_python() -> Part:
    found = platform.python_version()
    return Part(
        True,
        f"{found} on {platform.system()} {platform.machine()}",
        {"version": found, "path": sys.executable},
    )


def look_at_torch() -> Part:
    if installed("torch") is None:
        return Part(False, "not installed; vitcache stands on it: pip install 'torch>=2.9'")
    import torch

    facts = {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cuda_usable": torch.cuda.is_available(),
    }
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    usable = "can use the GPU" if facts["cuda_usable"] else "runs on the CPU"
    return Part(True, f"{torch.__version__}, {build}, {usable}{doubt('torch', torch.__version__)}", facts)


def look_at_package(name: str, purpose: str) -> Part:
    found = installed(name)
    if found is None:
        return Part(False, f"not installed; {purpose}")
    return Part(True, f"{found}{doubt(name, found)}", {"version": found, "supported": not doubt(name, found)})


def look_at_extras() -> Part:
    found = {name: installed(name) for names in EXTRAS.values() for name in names}
    words = [f"{name} {found[name]}" for name in found if found[name]]
    for extra, names in EXTRAS.items():
        missing = [name for name in names if not found[name]]
        if missing:
            words.append(f"not {', '.join(missing)} (pip install 'vitcache[{extra}]')")
    return Part(all(found.values()), ", ".join(words), {"versions": found})


def look_at_native_module() -> Part:
    if find_spec("vitcache._native") is None:
        return Part(False, "not built; `make setup` in a checkout, or `pip install .`")
    from vitcache import _native

    facts = {"version": _native.version, "compiler": _native.compiler, "flags": _native.flags}
    words = f"built by {_native.compiler} with {_native.flags}"
    if _native.version != __version__:
        return Part(False, f"{words}, for vitcache {_native.version}: build it again", facts)
    return Part(True, words, facts)


def look_at_cuda_runtime() -> Part:
    runtime = open_cuda_runtime()
    facts: dict[str, Any] = {"searched": runtime.searched}
    if not runtime.available:
        return Part(False, "not found; looked at " + "; ".join(runtime.searched), facts)
    facts |= {"path": runtime.path, "version": dotted(runtime.version())}
    driver = runtime.driver_version()
    words = f"{facts['version']} at {facts['path']}, "
    words += f"driver for CUDA up to {dotted(driver)}" if driver else "no driver"
    return Part(True, words, facts | {"driver": dotted(driver) if driver else None})


def look_at_gpus() -> Part:
    runtime = open_cuda_runtime()
    if not runtime.available:
        return Part(False, "cannot be asked for without the CUDA runtime")
    try:
        devices = [
            {"name": found.name, "capability": f"{found.major}.{found.minor}"} for found in runtime.devices()
        ]
    except CudaError as error:
        return Part(False, str(error))
    names = ", ".join(f"{device['name']} (compute capability {device['capability']})" for device in devices)
    return Part(bool(devices), names or "the driver knows of none", {"devices": devices})


def look_at_keys() -> Part:
    from vitcache.keys.content import ALGORITHM

    slower = "" if ALGORITHM == "blake3" else ", slower than blake3: pip install blake3"
    return Part(True, f"hashed with {ALGORITHM}{slower}", {"algorithm": ALGORITHM})


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def doubt(name: str, found: str) -> str:
    """What to add to a version that is not supported; nothing for one that is."""
    first, last = SUPPORTED[name]
    if series(first) <= series(found) <= series(last):
        return ""
    return f" (vitcache supports {first} to {last}, tested with {' and '.join(TESTED[name])})"


def series(text: str) -> tuple[int, ...]:
    """Major and minor number of a version such as 2.13.0+cpu or 2.10rc1; none for what is no version."""
    found = re.match(r"(\d+)(?:\.(\d+))?", text)
    return tuple(int(number or 0) for number in found.groups()) if found else ()


def dotted(cuda_version: int) -> str:
    return f"{cuda_version // 1000}.{cuda_version % 1000 // 10}"
