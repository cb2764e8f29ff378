"""The effect that each Python block of a page must have, and the names that it uses without making them.

A block that contains the `trigger` of a scene gets the scene's names before it runs, and the scene's check
after it. So a page may print a few lines of a long program, and the lines still run as printed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from prometheus_client import generate_latest

import vitcache
from doc_pages import names as made
from doc_pages.names import Names, rows_of


@dataclass(frozen=True)
class Scene:
    """Names for the blocks that contain `trigger`, and the check of their effect.

    `enter` returns a context manager with the names, in which the block runs and is checked.
    """

    trigger: str
    enter: Callable[[], AbstractContextManager[Names]]
    check: Callable[[Names], bool]


def all_of(names: Names, cls: type) -> list[Any]:
    return [value for value in names.values() if isinstance(value, cls)]


def has_hits(names: Names) -> bool:
    return any(each.stats().hits > 0 for each in all_of(names, vitcache.Attachment))


def all_cached(names: Names) -> bool:
    chat, ids = names["chat"], names["input_ids"]
    return chat.num_cached == ids.shape[-1] and len(names["pipeline"].cache) == len(names["items"])


def encodes_once(names: Names) -> bool:
    """Each of the two images was encoded once and is in the cache, and no item failed."""
    pipelines = all_of(names, vitcache.VisionPipeline)
    return names["vision_tower"].encoded == len(pipelines[-1].cache) == 2 and not names["errors"]


def is_hit(names: Names) -> bool:
    """The images of an earlier step were not encoded again, and their rows are where the request says."""
    placed = torch.equal(names["inputs_embeds"][2:12], rows_of(names["pixels"]))
    return placed and encodes_once(names)


def hits_by_hand(names: Names) -> bool:
    """The rows are placed, the cache has both images, and no lease is left."""
    stats = names["cache"].stats()
    placed = torch.equal(names["inputs_embeds"][2:12], rows_of(names["images"][0]))
    return placed and stats.entries == 2 and stats.leased_pages == 0


def is_placed(names: Names) -> bool:
    """Some rows of `inputs_embeds`, which were zero, are written."""
    written = (names["inputs_embeds"] != 0).any(1)
    return bool(written.any()) and not bool(written.all())


def has_ranges(names: Names) -> bool:
    keys = {event.key for event in names["profile"].key_averages()}
    return {"vitcache.key", "vitcache.encode", "vitcache.place"} <= keys


def is_scraped(names: Names) -> bool:
    text = generate_latest(names["REGISTRY"]).decode()
    return all(
        f'vitcache_hits_total{{cache="{name}",tier="device"}} 1.0' in text for name in ("images", "audio")
    )


def plain(make: Callable[[], Names]) -> Callable[[], AbstractContextManager[Names]]:
    return lambda: nullcontext(make())


SCENES = (
    Scene("attach(model", plain(made.tiny_chat), has_hits),
    Scene("ChunkedPrefill(", plain(made.chunked_chat), all_cached),
    Scene("VisionPipeline(", plain(made.engine_step), encodes_once),
    Scene("pipeline.place(", plain(dict), is_hit),
    Scene("embed_tokens(", plain(made.by_hand), hits_by_hand),
    Scene("scatter_embeddings(", plain(made.kernel_call), is_placed),
    Scene(
        "KeyAliases(", plain(made.files), lambda names: names["aliases"].get(names["file_key"]) is not None
    ),
    Scene(
        "PinnedRing(",
        plain(made.pixel_copy),
        lambda names: torch.equal(names["pixels_on_gpu"], torch.from_numpy(names["pixels"]).bfloat16()),
    ),
    Scene("agree_over(", made.one_rank, encodes_once),
    Scene("tracing.enable()", made.traced_chat, has_ranges),
    Scene("CacheCollector(", made.two_caches, is_scraped),
)
