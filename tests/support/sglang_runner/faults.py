"""A plug-in of the tests that lets the encoder fail for one image, and holds the requests that arrive."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch

SCHEDULER = "sglang.srt.managers.scheduler"
BAD_SIZE = (160, 160)  # height and width of the image that fails: no image of `chat` has this size
BAD_GRID = [1, BAD_SIZE[0] // 16, BAD_SIZE[1] // 16]


def faults() -> None:
    """Give the scheduler the methods `set_fault`, `hold` and `write_state`, which the program calls."""
    module = sys.modules.get(SCHEDULER)
    if module is None:
        return
    module.Scheduler.set_fault = set_fault
    module.Scheduler.hold = hold
    module.Scheduler.write_state = write_state


def set_fault(scheduler: Any, kind: str) -> None:
    """Let the encoder fail for the image of `BAD_SIZE`. The kind "none" mends it."""
    model = scheduler.tp_worker.model_runner.model
    encode = type(model).get_image_feature.__get__(model)
    model.get_image_feature = encode if kind == "none" else lambda items: FAULTS[kind](encode, items)


def raises(encode: Any, items: list[Any]) -> Any:
    if any(map(is_bad, items)):
        raise OSError(f"damaged image {'x' * 10_000}\n\ud800")
    return encode(items)


def short(encode: Any, items: list[Any]) -> Any:
    """The last row is missing."""
    rows = encode(items)
    return rows[:-1] if any(map(is_bad, items)) else rows


def grid(encode: Any, items: list[Any]) -> Any:
    """The grid of the image has twice the patches of its pixels, and of its tokens."""
    return encode([with_wrong_grid(item) if is_bad(item) else item for item in items])


FAULTS = {"raises": raises, "short": short, "grid": grid}


def is_bad(item: Any) -> bool:
    return bool(item.image_grid_thw.flatten().tolist() == BAD_GRID)


def with_wrong_grid(item: Any) -> Any:
    item = copy.copy(item)
    item.model_specific_data = dict(item.model_specific_data)
    item.image_grid_thw = torch.tensor([[1, 2 * BAD_GRID[1], BAD_GRID[2]]])
    return item


def hold(scheduler: Any, is_held: bool) -> None:
    """Let requests wait, so that one step can begin with all of them."""
    scheduler._engine_paused = is_held


def write_state(scheduler: Any, path: str) -> None:
    """Write the number of requests that wait, and the free slots of the scheduler."""
    state = {
        "waiting": len(scheduler.waiting_queue),
        "free_tokens": scheduler.token_to_kv_pool_allocator.available_size(),
        "free_requests": scheduler.req_to_token_pool.available_size(),
    }
    Path(path).write_text(json.dumps(state))
