"""The names that the Python blocks of pages use without making them, and the effect of each block.

A block that contains the `trigger` of a scene gets the scene's names before it runs, and the scene's check
after it. So a page may print a few lines of a long program, and the lines still run as printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from prometheus_client import CollectorRegistry, generate_latest
from tiny_models import FAMILIES
from torch import distributed

import vitcache

HIDDEN, WORDS, IMAGE_TOKEN = 64, 1000, 999
PATCHES = 4  # patches of one row
Names = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """Names for the blocks that contain `trigger`, and the check of their effect.

    `enter` returns a context manager with the names, in which the block runs and is checked.
    """

    trigger: str
    enter: Callable[[], AbstractContextManager[Names]]
    check: Callable[[Names], bool]


class Tower:
    """A vision tower as `VisionPipeline` calls it: one row per four patches. Counts its images."""

    def __init__(self) -> None:
        self.encoded = 0

    def __call__(self, features: list[torch.Tensor], items: list[vitcache.Item]) -> list[torch.Tensor]:
        assert len(features) == len(items)
        self.encoded += len(items)
        return [rows_of(each) for each in features]


def rows_of(patches: torch.Tensor) -> torch.Tensor:
    return patches.bfloat16().reshape(-1, PATCHES * 32)[:, :HIDDEN]


def picture(seed: int, num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows * PATCHES, 32, generator=torch.Generator().manual_seed(seed))


def tiny_chat() -> Names:
    """A Qwen2.5-VL, and the processor's outputs for two turns of a chat: one image, and one more."""
    family = FAMILIES["qwen2_5_vl"]
    model = family.model()
    return {"model": model, "inputs": family.prompt(model, 0), "next_turn": family.prompt(model, 0, 1)}


def chunked_chat() -> Names:
    made = tiny_chat()
    prompt = made["next_turn"]
    return made | {name: prompt[name] for name in ("input_ids", "pixel_values", "image_grid_thw")}


def engine_step() -> Names:
    """An engine with a request of 40 tokens: two images of 10 and 12 rows, at tokens 2 and 20."""
    tokens = torch.randint(0, WORDS - 1, (40,), generator=torch.Generator().manual_seed(1))
    weight = torch.randn(WORDS, HIDDEN, generator=torch.Generator().manual_seed(2)).bfloat16()
    return {
        "hidden": HIDDEN,
        "vision_tower": Tower(),
        "pixels": picture(1, 10),
        "more_pixels": picture(2, 12),
        "prompt_ids": tokens,
        "input_ids": tokens,
        "weight": weight,
        "embedding_layer": torch.nn.Embedding.from_pretrained(weight),
        "user": "user 7",
    }


def by_hand() -> Names:
    """An engine without a pipeline: a prompt with two images, and a tower for one image."""
    images = [picture(1, 10), picture(2, 6)]
    ids = [1, 2, *[IMAGE_TOKEN] * 10, 3, *[IMAGE_TOKEN] * 6, 4]
    return engine_step() | {
        "images": images,
        "image": images[0],
        "image_token": IMAGE_TOKEN,
        "num_rows_of": lambda image: len(image) // PATCHES,
        "encode_image": rows_of,
        "input_ids": torch.tensor(ids),
    }


def kernel_call() -> Names:
    """`inputs_embeds` of a step, and the rows of two images."""
    rows = [torch.ones(10, HIDDEN).bfloat16(), torch.full((6, HIDDEN), 2.0).bfloat16()]
    return {"inputs_embeds": torch.zeros(40, HIDDEN).bfloat16(), "rows": rows, "hidden": HIDDEN}


def files() -> Names:
    """An image file, the image processor, and a function that decodes."""
    processor = SimpleNamespace(to_json_string=lambda: '{"size": 224}')
    return by_hand() | {
        "file_bytes": b"a JPEG file",
        "processor": processor,
        "decode": lambda _: picture(1, 10),
    }


def pixel_copy() -> Names:
    source = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)
    return {"pixels": source, "pixels_on_gpu": torch.zeros(64, 32).bfloat16()}


@contextmanager
def one_rank() -> Iterator[Names]:
    """A process group of one rank, for blocks about tensor parallel towers."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield engine_step() | {"group": None}
    finally:
        distributed.destroy_process_group()


@contextmanager
def traced_chat() -> Iterator[Names]:
    """An attached model, whose calls a block traces."""
    made = tiny_chat()
    try:
        yield made | {"torch": torch, "attachment": vitcache.attach(made["model"])}
    finally:
        import_module("vitcache.tracing").disable()


@contextmanager
def two_caches() -> Iterator[Names]:
    """Two caches with a hit each. The block gets a registry of its own, and opens no port."""
    caches = [vitcache.EmbeddingCache(4, device="cpu", device_bytes="1 MiB") for _ in range(2)]
    for cache in caches:
        cache.put(bytes(32), torch.ones(2, 4))
        cache.get(bytes(32)).release()
    registry = patch("prometheus_client.REGISTRY", CollectorRegistry())
    with registry, patch("prometheus_client.start_http_server"):
        yield {"images": caches[0], "audio": caches[1]}


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
    Scene("attach(model", plain(tiny_chat), has_hits),
    Scene("ChunkedPrefill(", plain(chunked_chat), all_cached),
    Scene("VisionPipeline(", plain(engine_step), encodes_once),
    Scene("pipeline.place(", plain(dict), is_hit),
    Scene("embed_tokens(", plain(by_hand), hits_by_hand),
    Scene("scatter_embeddings(", plain(kernel_call), is_placed),
    Scene("KeyAliases(", plain(files), lambda names: names["aliases"].get(names["file_key"]) is not None),
    Scene(
        "PinnedRing(",
        plain(pixel_copy),
        lambda names: torch.equal(names["pixels_on_gpu"], torch.from_numpy(names["pixels"]).bfloat16()),
    ),
    Scene("agree_over(", one_rank, encodes_once),
    Scene("tracing.enable()", traced_chat, has_ranges),
    Scene("CacheCollector(", two_caches, is_scraped),
)
