"""Starts the engines of the bench `sglang_chat`, each in a process of its own, and reads their results."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitcache.bench.engines.start import EngineFailed, run_module
from vitcache.bench.harness.record import ROOT
from vitcache.bench.sglang.chat_engines import METER, PLUG_INS, EngineOptions
from vitcache.bench.sglang.plug_ins import write_package

Step = tuple[str, str, dict[str, Any]]  # the key of the result, the name of the step, and its arguments
METERS = {METER: "vitcache.bench.sglang.meter:register"}  # the entry points of the package that engines get
# The programs that make a model.
SOURCES = (
    "sglang/chat_models.py",
    "engines/model_folder.py",
    "chats/digits.py",
    "chats/reader.py",
    "chats/lessons.py",
)


def run_engine(
    options: EngineOptions, steps: list[Step], folder: Path, device_type: str, *, may_end: bool
) -> dict[str, Any]:
    """Run one engine and return the results of its steps by their keys.

    With `may_end`, the process may fail in the last step, after this step has a first result.

    Raises
    ------
    EngineFailed
        If the process fails, or a step has no result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_package(folder / PLUG_INS, METER, METERS)
    variables = options.variables(folder, device_type)
    model, result = make_model(options.model, folder, variables), folder / "result.json"
    result.unlink(missing_ok=True)
    given = json.dumps({"engine": asdict(options), "device_type": device_type, "steps": steps})
    arguments = [given, str(model), str(result)]
    output = run_module(
        ["vitcache.bench.sglang.chat_steps", *arguments], variables, folder, None if may_end else 0
    )
    taken: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    missing = [key for key, _, _ in steps if key not in taken]
    if missing:
        raise EngineFailed(f"the engine {options.contender} ended before {missing[0]}:\n{output}")
    return taken


def make_model(name: str, folder: Path, variables: dict[str, str]) -> Path:
    """Return the folder of a model. It is made once for each version of the programs that make it."""
    sources = b"".join((ROOT / source).read_bytes() for source in SOURCES)
    model = folder / f"model-{name}-{hashlib.sha256(sources).hexdigest()[:8]}"
    if not model.exists():
        run_module(["vitcache.bench.sglang.chat_models", name, str(model)], variables, folder)
    return model
