"""Calls of a pipeline and its arguments."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from caches import make_cache
from pipeline_scene import HIDDEN, Tower, feature

from public_calls.call import Call, Valid
from vitcache import Chunk, Item, Items, Shadow, Span, VisionPipeline

KEY = bytes(32)


def pipeline(stack: ExitStack) -> VisionPipeline:
    cache = stack.enter_context(make_cache(width=HIDDEN))
    return stack.enter_context(VisionPipeline(Tower(), cache))


def item() -> Item:
    return Item(feature(0, 2), [Span(1, 2)])


def chunk() -> Chunk:
    return Chunk([item()], 0, 6)


def construct(stack: ExitStack) -> Call:
    def make(**given: Any) -> None:
        VisionPipeline(**given).close()

    return make, {
        "encode": Tower(),
        "cache": stack.enter_context(make_cache(width=HIDDEN)),
        "namespace": b"",
        "ring": None,
        "max_rows_per_encode": 8,
        "agree": None,
        "feature_dtype": None,
        "stream": None,
        "shadow": None,
        "move_features": True,
        "keep_bytes": 1024,
        "tenant": "a",
    }


def embed(stack: ExitStack) -> Call:
    return pipeline(stack).embed, {
        "chunks": [chunk()],
        "input_ids": torch.zeros(6, dtype=torch.int64),
        "weight": torch.ones(3, HIDDEN),
        "out": None,
        "deepstack": None,
        "deepstack_rows": None,
        "scale": 2.0,
        "text_scale": 0.5,
    }


def place(stack: ExitStack) -> Call:
    return pipeline(stack).place, {
        "chunks": [chunk()],
        "inputs_embeds": torch.zeros(6, HIDDEN),
        "deepstack": None,
        "deepstack_rows": None,
        "scale": 2.0,
    }


def prefetch(stack: ExitStack) -> Call:
    made = pipeline(stack)
    return lambda **given: made.prefetch(**given).wait(60), {"chunks": [chunk()], "encode": True}


def fetch(stack: ExitStack) -> Call:
    return pipeline(stack).fetch, {"chunks": [chunk()]}


def cancel(stack: ExitStack) -> Call:
    made = pipeline(stack)
    return made.cancel, {"handle": made.prefetch([chunk()])}


def wait_for_prefetch(stack: ExitStack) -> Call:
    handle = pipeline(stack).prefetch([])
    handle.wait(60)
    return handle.wait, {"timeout_s": 60}


def make_item(stack: ExitStack) -> Call:
    return Item, {
        "feature": feature(0, 2),
        "spans": [Span(1, 2)],
        "num_rows": 2,
        "key": KEY,
        "complete_key": False,
        "rows": None,
        "row_width": HIDDEN,
        "tenant": "a",
        "context": None,
        "move_feature": True,
    }


CALLS: dict[str, Valid] = {
    "Item": make_item,
    "Items": lambda stack: (Items, {"items": [item()]}),
    "Items.within": lambda stack: (Items([item()]).within, {"start": 0, "stop": 6}),
    "Chunk": lambda stack: (Chunk, {"items": [item()], "start": 0, "length": 6, "token_offset": 0}),
    "VisionPipeline": construct,
    "VisionPipeline.embed": embed,
    "VisionPipeline.place": place,
    "VisionPipeline.prefetch": prefetch,
    "VisionPipeline.fetch": fetch,
    "VisionPipeline.cancel": cancel,
    "VisionPipeline.key": lambda stack: (pipeline(stack).key, {"item": item()}),
    "Prefetch.wait": wait_for_prefetch,
    "Shadow": lambda stack: (Shadow, {"every": 3, "report": print}),
}
