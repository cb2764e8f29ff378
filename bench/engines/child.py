"""The program of one engine: `python -m vitcache.bench.engines.child OPTIONS MODEL_FOLDER RESULT`.

It starts the engine, takes the steps, and writes a result as JSON. OPTIONS is JSON: the fields of
`EngineOptions`, the names of the steps with their arguments, and whether the process kills itself at the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from vitcache.bench.engines.contenders import EngineOptions
from vitcache.bench.engines.engine import Engine
from vitcache.bench.engines.steps import STEPS


def main(options: str, model: str, result: str) -> None:
    """Run one engine."""
    given = json.loads(options)
    engine = Engine(EngineOptions(**given["engine"]), Path(model))
    taken: dict[str, Any] = {}
    for name, arguments in given["steps"].items():
        taken[name] = STEPS[name](engine, **arguments)
        taken[f"{name} counters"] = engine.counters()  # so far
    taken["metrics"] = sorted({metric.name for metric in engine.llm.get_metrics()})
    Path(result).write_text(json.dumps(taken))
    if given["is_killed"]:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
