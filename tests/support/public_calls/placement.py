"""Calls that name spans and place rows."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from public_calls.call import Call, Valid
from vitcache import (
    PlacementTable,
    Span,
    clip_spans,
    embed_tokens,
    scatter_embeddings,
    spans_from_inclusive,
    spans_from_placeholder,
    spans_from_token_ids,
    warm_up,
)

HIDDEN = 4


def scatter(stack: ExitStack) -> Call:
    return scatter_embeddings, {
        "inputs_embeds": torch.zeros(6, HIDDEN),
        "embeddings": [torch.ones(2, 2 * HIDDEN)],
        "spans": [1],
        "deepstack": torch.zeros(1, 6, HIDDEN),
        "deepstack_rows": None,
        "scale": 2.0,
        "store": None,
    }


def embed(stack: ExitStack) -> Call:
    return embed_tokens, {
        "input_ids": torch.zeros(6, dtype=torch.int64),
        "weight": torch.ones(3, HIDDEN),
        "embeddings": [torch.ones(2, HIDDEN)],
        "spans": [1],
        "out": torch.zeros(6, HIDDEN),
        "deepstack": None,
        "deepstack_rows": None,
        "scale": 2.0,
        "text_scale": 0.5,
        "store": None,
    }


def make_table() -> PlacementTable:
    return PlacementTable(4, dtype=torch.float32, device="cpu")


def warm_up_table(stack: ExitStack) -> Call:
    table = make_table().update([torch.ones(2, 2 * HIDDEN)], [1])
    return table.warm_up, {
        "inputs_embeds": torch.zeros(6, HIDDEN),
        "deepstack": torch.zeros(1, 6, HIDDEN),
        "weight": torch.ones(3, HIDDEN),
        "scale": 2.0,
        "text_scale": 0.5,
    }


def warm_up_kernels(stack: ExitStack) -> Call:
    return warm_up, {
        "device": "cpu",
        "hidden": HIDDEN,
        "dtype": torch.float32,
        "levels": 1,
        "level_forms": ("list",),
        "narrow": True,
        "source_dtypes": [torch.float32],
        "weight_dtype": torch.float32,
        "store_dtype": torch.float32,
        "scale": True,
        "text_scale": True,
        "store": True,
        "table": True,
    }


CALLS: dict[str, Valid] = {
    "Span": lambda stack: (Span, {"start": 1, "length": 2, "source_start": 0}),
    "spans_from_inclusive": lambda stack: (spans_from_inclusive, {"offsets": [(1, 2)]}),
    "spans_from_placeholder": lambda stack: (
        spans_from_placeholder,
        {"offset": 1, "length": 2, "is_embed": [True, False]},
    ),
    "spans_from_token_ids": lambda stack: (
        spans_from_token_ids,
        {"input_ids": [7, 9, 9], "token_id": 9, "num_rows": [2]},
    ),
    "clip_spans": lambda stack: (clip_spans, {"spans": [Span(1, 2)], "start": 0, "length": 2}),
    "scatter_embeddings": scatter,
    "embed_tokens": embed,
    "PlacementTable": lambda stack: (
        PlacementTable,
        {"max_rows": 4, "dtype": torch.float32, "device": "cpu"},
    ),
    "PlacementTable.update": lambda stack: (
        make_table().update,
        {"embeddings": [torch.ones(2, HIDDEN)], "spans": [1]},
    ),
    "PlacementTable.warm_up": warm_up_table,
    "warm_up": warm_up_kernels,
}
