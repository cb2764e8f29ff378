"""The reader and writer of result lines: a module of the benches, loaded by its path.

The runner reads earlier results before the package is built, and so before `vitcache.bench` can be imported.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PATH = ROOT / "bench/harness/result_lines.py"


def _load() -> Any:
    spec = spec_from_file_location("gpu_runner_result_lines", PATH)
    if spec is None or spec.loader is None:
        raise ImportError(f"{PATH} cannot be loaded")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_module = _load()
ResultLines, read, cases_of = _module.ResultLines, _module.read, _module.cases_of
Lines = list[dict[str, Any]]
