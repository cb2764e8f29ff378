"""`vitcache info`: lists the parts that this build and this machine have or lack, and unsupported versions.

Each part is inspected separately. A missing or broken part is reported, and raises no exception.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

from vitcache._version import __version__
from vitcache.adapters.sglang.start_up import TESTED_VERSIONS as SGLANG_VERSIONS
from vitcache.adapters.vllm.plugin import TESTED_VERSIONS as VLLM_VERSIONS
from vitcache.device.cuda_runtime import open_cuda_runtime
from vitcache.errors import CudaError
from vitcache.extras import EQUAL_PACKAGES, EXTRAS, install_command
from vitcache.terminal.progress import Progress
from vitcache.terminal.table import Table
from vitcache.versions import SUPPORTED, installed_version, support_note, versions_of_tests

SYSTEMS = {"Darwin": "macOS"}  # names of systems that differ from Python's
STYLES = {"has": "", "check": "yellow", "lacks": "red", "optional": "dim"}
NAMES = {
    "cuda_runtime": "CUDA runtime",
    "gpu": "GPU",
    "triton": "Triton",
    "vllm": "vLLM",
    "sglang": "SGLang",
}
# The versions that each plug-in was tested with.
ENGINES = {"vllm": VLLM_VERSIONS, "sglang": SGLANG_VERSIONS}
FOR_CUDA_ONLY = ("cuda_runtime", "gpu")


@dataclass(frozen=True)
class Part:
    """One part of the report: whether vitcache can use it, a line of text, and its facts for `--json`.

    `needed` is false for a part without which vitcache works as it is installed here.
    """

    usable: bool
    text: str
    facts: dict[str, Any] = field(default_factory=dict)
    needed: bool = True

    @property
    def state(self) -> str:
        """has, check (usable, but the version is not supported), lacks or optional."""
        if self.usable:
            return "has" if self.facts.get("supported", True) else "check"
        return "lacks" if self.needed else "optional"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as JSON (default: a table)")


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns 0 also if parts are missing: a report was asked for, and it was printed."""
    with Progress("info") as progress:
        progress.show("inspects the parts")  # the import of torch takes seconds
        parts = collect()
    if args.json:
        facts = {
            name: {
                "have": part.usable,
                "needed": part.needed,
                "state": part.state,
                "words": part.text,
                **part.facts,
            }
            for name, part in parts.items()
        }
        print(json.dumps({"vitcache": __version__, **facts}, indent=2))
        return 0
    print(f"vitcache {__version__}")
    table = Table(["", "", ""], flexible=2)
    for name, part in parts.items():
        table.add(
            f"  {part.state}", NAMES.get(name, name.replace("_", " ")), part.text, style=STYLES[part.state]
        )
    table.print()
    return 0


def collect() -> dict[str, Part]:
    """Inspect every part. torch is imported before the CUDA runtime is opened, because torch may load one."""
    parts = {"python": inspect_safely(inspect_python), "torch": inspect_safely(inspect_torch)}
    is_cpu_build = parts["torch"].usable and parts["torch"].facts["cuda_build"] is None
    inspections: dict[str, Callable[[], Part]] = {
        "triton": lambda: inspect_triton(is_cpu_build),
        "native_module": inspect_native_module,
        "cuda_runtime": inspect_cuda_runtime,
        "gpu": inspect_gpus,
        "content_keys": inspect_content_keys,
        "transformers": lambda: inspect_package("transformers", "vitcache.attach and the demo need it"),
        "vllm": lambda: inspect_engine("vllm"),
        "sglang": lambda: inspect_engine("sglang"),
        "extras": inspect_extras,
    }
    parts |= {name: inspect_safely(inspect) for name, inspect in inspections.items()}
    for name in FOR_CUDA_ONLY if is_cpu_build else ():
        if not parts[name].usable:
            text = f"{parts[name].text}; torch for the CPU needs none"
            parts[name] = replace(parts[name], text=text, needed=False)
    return parts


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
    system = platform.system()
    facts = {"version": release, "path": sys.executable, "system": system}
    text = f"{release} on {SYSTEMS.get(system, system)} {platform.machine()}"
    if system != "Linux":
        return Part(False, f"{text}: this system is not supported, vitcache runs on Linux", facts)
    return Part(True, text, facts)


def inspect_torch() -> Part:
    if installed_version("torch") is None:
        first, _ = SUPPORTED["torch"]
        return Part(False, f"not installed; vitcache needs it: pip install 'torch>={first}'")
    import torch

    hip = getattr(torch.version, "hip", None)
    facts = {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cuda_usable": torch.cuda.is_available(),
        "rocm_build": hip,
        **range_facts("torch", torch.__version__),
    }
    if hip:
        text = f"{torch.__version__}, built for ROCm {hip}: AMD GPUs are not supported. vitcache needs a "
        return Part(False, text + "build of torch for CUDA or for the CPU", facts | {"supported": False})
    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    usable = "can use the GPU" if facts["cuda_usable"] else "runs on the CPU"
    text = f"{torch.__version__}, {build}, {usable}{range_text('torch', torch.__version__)}"
    return Part(True, text, facts)


def inspect_triton(is_cpu_build: bool) -> Part:
    """`is_cpu_build`: torch is built for the CPU, whose operations are not Triton's."""
    if is_cpu_build and installed_version("triton") is None:
        reason = "only the CUDA kernels need it, and torch is built for the CPU"
        return Part(False, f"not installed; {reason}", {}, False)
    part = inspect_package("triton", "the CUDA kernels need it, and torch for CUDA brings it")
    return replace(part, needed=True)


def inspect_package(name: str, purpose: str) -> Part:
    installed = installed_version(name)
    if installed is None:
        return Part(False, f"not installed; {purpose}: {install_command(name)}", {}, False)
    facts = {"version": installed, **range_facts(name, installed)}
    return Part(True, f"{installed}{range_text(name, installed)}", facts)


def inspect_engine(package: str) -> Part:
    """An engine with a plug-in of vitcache, which starts with the tested versions only."""
    installed = installed_version(package)
    tested = " and ".join(ENGINES[package])
    if installed is None:
        text = f"not installed; the plug-in needs {tested}: {install_command(package)}"
        return Part(False, text, {}, False)
    is_tested = installed.partition("+")[0] in ENGINES[package]
    facts = {"version": installed, "supported": is_tested, "range": tested}
    if is_tested:
        return Part(True, f"{installed}, the tested version", facts)
    return Part(
        True, f"{installed}, NOT tested: the plug-in starts with {NAMES[package]} {tested} only", facts
    )


def range_facts(package: str, installed: str) -> dict[str, Any]:
    """Return whether a version is supported, and the range, as facts for ``--json``."""
    return {
        "supported": not support_note(package, installed),
        "range": " to ".join(SUPPORTED[package]),
    }


def range_text(package: str, installed: str) -> str:
    """Return in words whether a version is in the supported range."""
    facts = range_facts(package, installed)
    if facts["supported"]:
        return f"; in the supported range {facts['range']}"
    return f"; NOT in the supported range {facts['range']} (tested: {versions_of_tests(package)})"


def inspect_extras() -> Part:
    """The packages of the extras that have no part of their own."""
    extras = {extra: EXTRAS[extra] for extra in ("demo", "metrics", "mooncake")}
    versions = {
        name: installed_version(name) or installed_version(EQUAL_PACKAGES.get(name, name))
        for names in extras.values()
        for name in names
    }
    texts = [f"{name} {versions[name]}" for name in versions if versions[name]]
    for extra, names in extras.items():
        missing = [name for name in names if not versions[name]]
        if missing:
            texts.append(f"not {', '.join(missing)} (pip install 'vitcache[{extra}]')")
    return Part(all(versions.values()), ", ".join(texts), {"versions": versions}, needed=False)


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

    slower = "" if ALGORITHM == "blake3" else f", slower than blake3: {install_command('blake3')}"
    return Part(True, f"hashed with {ALGORITHM}{slower}", {"algorithm": ALGORITHM})


def format_cuda_version(cuda_version: int) -> str:
    """Return a version number of CUDA, such as 13010, as text: 13.1."""
    return f"{cuda_version // 1000}.{cuda_version % 1000 // 10}"
