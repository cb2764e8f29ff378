"""The names that the Python blocks of pages use without making them: models, images, prompts, caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from prometheus_client import CollectorRegistry
from tiny_models import FAMILIES
from torch import distributed

import vitcache

HIDDEN, WORDS, IMAGE_TOKEN = 64, 1000, 999
PATCHES = 4  # patches of one row
Names = dict[str, Any]


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
