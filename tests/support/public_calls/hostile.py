"""Values that no caller means, and the arguments that accept some of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch


class Text(str):
    """A subclass of str."""


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)

HOSTILE: dict[str, Any] = {
    "None": None,
    "True": True,
    "-1": -1,
    "2**63": 2**63,
    "10**400": 10**400,
    "1.5": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "empty str": "",
    "str": "x",
    "surrogate": "\ud800",
    "Text": Text("x"),
    "empty bytes": b"",
    "object": object(),
    "type": int,
    "[]": [],
    "[None]": [None],
    "recursive": RECURSIVE,
    "{}": {},
    "array": np.array([None], dtype=object),
    "0-d float": torch.tensor(1.5),
    "0-d int": torch.tensor(1),
    "complex": torch.zeros(1, 1, 2, dtype=torch.complex64),
    "empty": torch.zeros(0),
    "sparse": torch.ones(2, 4).to_sparse(),
    "meta": torch.zeros(2, 4, device="meta"),
}

NONE = {"None"}
FLAG = {"True"}
CALLABLE = {"type"}
INT = {"0-d int"}
COUNT = {"0-d int", "2**63", "10**400"}  # numbers that are compared or cut, and allocate nothing
FACTOR = {"None", "-1", "2**63", "1.5", "nan", "inf"}
TIME = {"None", "1.5", "2**63"}
EMPTY = {"empty str", "empty bytes", "[]", "{}", "empty"}
TEXT = {"empty str", "str", "surrogate", "Text"}
FEATURE = {"empty bytes", "[]", "0-d float", "0-d int", "complex", "empty"}
EXTRA = FEATURE | TEXT | COUNT | FLAG | FACTOR | {"[None]", "{}"}

# The values that an argument accepts: an argument of all calls, or of one call. Every other argument accepts
# none.
_ACCEPTED: tuple[tuple[set[str], str], ...] = (
    (NONE | {"2**63"}, "after Ticket.wait.stream"),
    (NONE, "cache device group is_embed key keys out ring rows second_per_grid_ts shadow stream tier"),
    (NONE, "deepstack_rows feature_dtype weight_dtype store_dtype processor"),
    (NONE, "vision_pipeline.device_bytes attach.device_bytes attach.host_bytes attach.policy"),
    (NONE, "vision_pipeline.host_bytes"),
    ({"[]"}, "attach.tiers vision_pipeline.tiers"),
    (
        FLAG,
        "checksum complete_key complete_keys contiguous encode encode_ahead move_feature move_features",
    ),
    (FLAG, "evict from_device"),
    (FLAG, "narrow table warm_up.scale warm_up.text_scale warm_up.store"),
    (FLAG, "direct single_flight"),
    (INT, "replicas"),
    (NONE | {"str", "Text"}, "local_host"),
    (TEXT - {"surrogate"}, "MooncakeTier.devices"),
    ({"None", "2**63", "1.5"}, "MooncakeTier.worth"),
    ({"str", "Text"}, "path"),
    (FLAG | NONE, "attach.checksum"),
    (CALLABLE, "VisionPipeline.encode invalidate report"),
    (CALLABLE | NONE, "agree on_done"),
    (INT, "max_rows page_rows EmbeddingCache.row_width PlacementTable.max_rows offset"),
    (INT | NONE, "num_threads row_width width"),
    (INT | NONE | {"[None]"}, "EmbeddingCache.expect.row_width"),
    (COUNT, "start length source_start stop token_offset num_bytes keep_bytes content_key.num_threads"),
    (COUNT, "every max_entries max_rows_per_encode record_evictions chunk_tokens hidden levels epoch"),
    (COUNT, "shadow_every fingerprint_calls"),
    (COUNT | NONE, "num_rows Item.row_width EmbeddingCache.put.epoch EmbeddingCache.reserve.epoch"),
    (COUNT | {"-1"}, "Items.within.start Items.within.stop"),
    (FACTOR, "scale text_scale"),
    (TIME, "encode_ms timeout_s"),
    (TIME - NONE, "WriteBack.encode_ms fetch_timeout_s"),
    (INT, "WriteBack.hits"),
    (COUNT, "queue_bytes EmbeddingCache.begin_fetch.num_rows EmbeddingCache.fetch.num_rows"),
    ({"[]"}, "tiers EmbeddingCache.begin_fetch.keys EmbeddingCache.fetch.keys"),
    (TEXT - {"empty str"} | NONE, "weights_name"),
    ({"empty bytes"}, "namespace"),
    (TEXT | NONE | {"empty bytes"}, "attach.namespace vision_pipeline.namespace"),
    (TEXT, "Namespace.model Namespace.revision Namespace.processor Namespace.adapter Namespace.dtype"),
    (TEXT, "tenant"),
    (TEXT | NONE, "Item.tenant VisionPipeline.tenant"),
    (TEXT - {"surrogate"} | COUNT | {"empty bytes", "-1"}, "identifier"),
    ({"None", "str", "Text"}, "CacheCollector.name"),
    (FEATURE, "feature"),
    (EXTRA, "extra"),
    (set(HOSTILE), "Item.feature context"),  # a feature is read in a step, where its error is the item's
    (EMPTY, "clip_spans.spans Items.items Chunk.items"),
    (EMPTY | NONE, "offsets Item.spans"),
    ({"[]"}, "chunks EmbeddingCache.get_many.keys EmbeddingCache.expect.num_rows"),
    ({"[]", "None"}, "deepstack source_dtypes"),
    ({"[None]", "None"}, "store extras"),
    ({"{}", "None"}, "splits"),
    ({"[]", "empty bytes"}, "level_forms"),
    ({"meta", "None"}, "PlacementTable.warm_up.weight"),
)
ACCEPTED = {name: values for values, names in _ACCEPTED for name in names.split()}


def accepted(call: str, argument: str) -> set[str]:
    """Return the names of the values that an argument of a call accepts."""
    return ACCEPTED.get(f"{call}.{argument}", ACCEPTED.get(argument, set()))
