"""`python -m vitcache info`: lists the parts that this build and this machine have or lack.

Each part is inspected separately. A missing or broken part is reported, and raises no exception.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from vitcache._version import __version__
from vitcache.device.cuda_runtime import open_cuda_runtime
from vitcache.errors import CudaError
from vitcache.versions import installed_version, support_note

EXTRAS = {
    "demo": ("rich", "matplotlib", "scikit-image", "scikit-learn", "pillow"),
    "metrics": ("prometheus-client",),
}


@dataclass(frozen=True)
class Part:
    """One part of the report: whether vitcache can use it, a line of text, and its facts for `--json`."""

    usable: bool
    text: str
    facts: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    parts = collect()
    if args.json:
        facts = {
            name: {"have": part.usable, "words": part.text, **part.facts} for name, part in parts.items()
        }
        print(json.dumps({"vitcache": __version__, **facts}, indent=2))
    else:
        print(f"vitcache {__version__}")
        for name, part in parts.items():
            print(f"  {'has  ' if part.usable else 'lacks'}  {name.replace('_', ' ')}: {part.text}")
    return 0


def collect() -> dict[str, Part]:
    """Inspect every part. torch is imported before the CUDA runtime is opened, because torch may load one."""
    inspections: dict[str, Callable[[], Part]] = {
        "python": inspect_python,
        "torch": inspect_torch,
        "triton": lambda: inspect_package("triton", "the CUDA kernels need it: pip install triton"),
        "native_module": inspect_native_module,
        "cuda_runtime": inspect_cuda_runtime,
        "gpu": inspect_gpus,
        "content_keys": inspect_content_keys,
        "transformers": lambda: inspect_package(
            "transformers", "vitcache.attach and the demo need it: pip install 'vitcache[transformers]'"
        ),
        "extras": inspect_extras,
    }
    return {name: inspect_safely(inspect) for name, inspect in inspections.items()}


def inspect_safely(inspect: Callable[[], Part]) -> Part:
    try:
        return inspect()
    except ModuleNotFoundError as error:
        return Part(False, f"needs {error.name}, which is not installed")
    except Exception as error:
        # The import of a package can raise any exception. The report shows it, and the other parts follow.
        return Part(False, f"{type(error).__name__}: {error}")


def inspect_python() -> Part:
    release = platform.python_version()
    return Part(
        True,
        f"{release} on {platform.system()} {platform.machine()}",
        {"version": release, "path": sys.executable},
    )


def inspect_torch() -> Part:
    if installed_version("torch") is None:
        return Part(False, "not installed; vitcache needs it: pip install 'torch>=2.9'")
    import torch

    facts = {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cuda_usable": torch.cuda.is_available(),
    }
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    usable = "can use the GPU" if facts["cuda_usable"] else "runs on the CPU"
    return Part(
        True, f"{torch.__version__}, {build}, {usable}{support_note('torch', torch.__version__)}", facts
    )


def inspect_package(name: str, purpose: str) -> Part:
    installed = installed_version(name)
    if installed is None:
        return Part(False, f"not installed; {purpose}")
    note = support_note(name, installed)
    return Part(True, f"{installed}{note}", {"version": installed, "supported": not note})


def inspect_extras() -> Part:
    versions = {name: installed_version(name) for names in EXTRAS.values() for name in names}
    texts = [f"{name} {versions[name]}" for name in versions if versions[name]]
    for extra, names in EXTRAS.items():
        missing = [name for name in names if not versions[name]]
        if missing:
            texts.append(f"not {', '.join(missing)} (pip install 'vitcache[{extra}]')")
    return Part(all(versions.values()), ", ".join(texts), {"versions": versions})


def inspect_native_module() -> Part:
    if find_spec("vitcache._native") is None:
        return Part(False, "not built; `make setup` in a checkout, or `pip install .`")
    from vitcache import _native

    facts = {"version": _native.version, "compiler": _native.compiler, "flags": _native.flags}
    text = f"built by {_native.compiler} with {_native.flags}"
    if _native.version != __version__:
        return Part(False, f"{text}, for vitcache {_native.version}: rebuild it", facts)
    return Part(True, text, facts)


def inspect_cuda_runtime() -> Part:
    runtime = open_cuda_runtime()
    facts: dict[str, Any] = {"searched": runtime.searched}
    if not runtime.available:
        return Part(False, "not found; searched: " + "; ".join(runtime.searched), facts)
    facts |= {"path": runtime.path, "version": format_cuda_version(runtime.version())}
    driver = runtime.driver_version()
    text = f"{facts['version']} at {facts['path']}, "
    text += f"driver for CUDA up to {format_cuda_version(driver)}" if driver else "no driver"
    return Part(True, text, facts | {"driver": format_cuda_version(driver) if driver else None})


def inspect_gpus() -> Part:
    runtime = open_cuda_runtime()
    if not runtime.available:
        return Part(False, "cannot be listed without the CUDA runtime")
    try:
        devices = [
            {"name": device.name, "capability": f"{device.major}.{device.minor}"}
            for device in runtime.devices()
        ]
    except CudaError as error:
        return Part(False, str(error))
    names = ", ".join(f"{device['name']} (compute capability {device['capability']})" for device in devices)
    return Part(bool(devices), names or "the driver finds no GPU", {"devices": devices})


def inspect_content_keys() -> Part:
    from vitcache.keys.digests import ALGORITHM

    slower = "" if ALGORITHM == "blake3" else ", slower than blake3: pip install blake3"
    return Part(True, f"hashed with {ALGORITHM}{slower}", {"algorithm": ALGORITHM})


def format_cuda_version(cuda_version: int) -> str:
    """Return a version number of CUDA, such as 13010, as text: 13.1."""
    return f"{cuda_version // 1000}.{cuda_version % 1000 // 10}"
