"""The plug-ins of the tests: SGLang loads those that SGLANG_PLUGINS names, in each process of an engine.

They change a module of SGLang only if it is loaded already, so that no process imports one for them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

SCHEDULER = "sglang.srt.managers.scheduler"
MM_UTILS = "sglang.srt.managers.mm_utils"
VITCACHE = "vitcache.adapters.sglang"


def probe() -> None:
    """Give the scheduler methods, which the program of the engine calls on all ranks."""
    module = sys.modules.get(SCHEDULER)
    if module is None:
        return
    counts = {"encodes": 0, "lookups": 0}

    def watch(scheduler: Any) -> None:
        """Begin to count the images that the model encodes, and the steps of SGLang's own look-up."""
        model = scheduler.tp_worker.model_runner.model
        mm_utils = sys.modules[MM_UTILS]
        encode, look_up = model.get_image_feature, mm_utils.get_embedding_and_mask

        def get_image_feature(items: list[Any]) -> Any:
            counts["encodes"] += len(items)
            return encode(items)

        def get_embedding_and_mask(*arguments: Any, **named: Any) -> Any:
            counts["lookups"] += 1
            return look_up(*arguments, **named)

        model.get_image_feature = get_image_feature
        mm_utils.get_embedding_and_mask = get_embedding_and_mask

    def write_counts(scheduler: Any, path: str) -> None:
        """Write the counts of the first rank, and those of vitcache if it has embedded a step."""
        if tp_rank():
            return
        is_used = f"{VITCACHE}.service" in sys.modules
        stats = asdict(sys.modules[VITCACHE].stats()) if is_used else {"steps": 0}
        Path(path).write_text(json.dumps({**counts, "placed": stats["steps"], "vitcache": stats}))

    def clear_rank(scheduler: Any, rank: int) -> None:
        """Remove the entries of one rank."""
        if tp_rank() == rank:
            sys.modules[f"{VITCACHE}.service"].SERVICE.clear()

    def break_rank(scheduler: Any, rank: int | None) -> None:
        """Let one rank alone fail at each feature that it reads; None: mend all ranks."""
        factory = sys.modules[f"{VITCACHE}.item_factory"]
        places = sys.modules[f"{VITCACHE}.feature_places"]
        factory.wait_until_offloaded = refuse if tp_rank() == rank else places.wait_until_offloaded

    for method in (watch, write_counts, clear_rank, break_rank):
        setattr(module.Scheduler, method.__name__, method)


def tp_rank() -> int:
    return sys.modules["sglang.srt.runtime_context"].get_parallel().tp_rank


def refuse(*_: Any) -> None:
    raise MemoryError("no memory on this rank")


def patient() -> None:
    """Let requests wait for a disk as long as it takes, also on a busy machine."""
    if SCHEDULER in sys.modules:
        from vitcache.adapters.sglang import model_cache

        model_cache.FETCH_TIMEOUT_S = 60.0


def rename() -> None:
    """Rename a function that vitcache hooks, as a newer SGLang may."""
    module = sys.modules.get(MM_UTILS)
    if module is not None:
        module.embed_inputs = module.__dict__.pop("embed_mm_inputs")
