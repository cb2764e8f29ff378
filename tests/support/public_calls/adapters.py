"""Calls of the adapters of transformers, of torch.distributed and of Prometheus."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

from caches import make_cache
from prefill_scene import Scene
from tiny_models import FAMILIES
from torch import distributed

from public_calls.call import Call, Valid
from vitcache import InvalidateCallback, attach, invalidate_after, processor_fingerprint
from vitcache.adapters.distributed import agree_over
from vitcache.adapters.transformers import (
    ChunkedPrefill,
    image_encoder,
    image_items,
    prefill_batch,
    video_items,
    vision_pipeline,
)
from vitcache.metrics import CacheCollector

FAMILY = "qwen2_5_vl"


def model() -> Any:
    return FAMILIES[FAMILY].model()


def attach_model(stack: ExitStack) -> Call:
    def make(**given: Any) -> None:
        attach(**given).detach()

    return make, {
        "model": model(),
        "cache": None,
        "namespace": None,
        "device_bytes": 1 << 16,
        "host_bytes": 0,
        "policy": "lru",
        "checksum": False,
        "splits": None,
        "ring": None,
        "shadow_every": 0,
        "fingerprint_calls": 0,
        "placement": "auto",
        "tiers": [],
    }


def pipeline_of_model(stack: ExitStack) -> Call:
    def make(**given: Any) -> None:
        vision_pipeline(**given).close()

    sizes = {"device_bytes": 1 << 16, "host_bytes": 1 << 16}
    return make, {"model": model(), "cache": None, "namespace": b"", **sizes, "tiers": []}


def images(stack: ExitStack) -> Call:
    scene = Scene(FAMILY)
    prompt = scene.family.mixed_prompt(("image", 0))
    names = "input_ids", "pixel_values", "image_grid_thw"
    given = {name: prompt[name] for name in names}
    return image_items, {"model": scene.model, **given, "keys": None, "complete_keys": False}


def videos(stack: ExitStack) -> Call:
    scene = Scene(FAMILY)
    prompt = scene.family.mixed_prompt(("video", 0))
    names = "input_ids", "pixel_values_videos", "video_grid_thw"
    given = {name: prompt[name] for name in names}
    options = {"second_per_grid_ts": None, "keys": None, "complete_keys": False}
    return video_items, {"model": scene.model, **given, **options}


def chat(stack: ExitStack) -> Call:
    scene = Scene(FAMILY)
    options = {"chunk_tokens": 8, "encode_ahead": False}
    return ChunkedPrefill, {"model": scene.model, "pipeline": scene.pipeline, **options}


def prefill(stack: ExitStack) -> Call:
    scene = Scene(FAMILY)
    prompt, items = scene.prompt(("image", 0))
    return scene.chat().prefill, {"input_ids": prompt["input_ids"], "items": items}


def chunks(stack: ExitStack) -> Call:
    scene = Scene(FAMILY)
    prompt, items = scene.prompt(("image", 0))
    arguments = {"input_ids": prompt["input_ids"], "items": items}
    return lambda **given: list(scene.chat().chunks(**given)), arguments


def batch(stack: ExitStack) -> Call:
    scene = Scene(FAMILY)
    prompt, items = scene.prompt(("image", 0))
    return prefill_batch, {
        "chats": [scene.chat()],
        "input_ids": [prompt["input_ids"]],
        "items": [items],
    }


def callback(stack: ExitStack) -> Call:
    attachment = stack.enter_context(attach(model()))
    return lambda attachments: InvalidateCallback(attachments), {"attachments": attachment}


def after(stack: ExitStack) -> Call:
    owner = SimpleNamespace(sync=print)
    arguments = {"owner": owner, "name": "sync", "invalidate": print}
    return lambda owner, name, invalidate: invalidate_after(owner, name, invalidate).remove(), arguments


def agree(stack: ExitStack) -> Call:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    stack.callback(distributed.destroy_process_group)
    return agree_over, {"group": None}


class Processor:
    def to_json_string(self) -> str:
        return "{}"


def collector(stack: ExitStack) -> Call:
    return CacheCollector, {"cache": stack.enter_context(make_cache()), "name": "a"}


CALLS: dict[str, Valid] = {
    "attach": attach_model,
    "vision_pipeline": pipeline_of_model,
    "image_items": images,
    "video_items": videos,
    "image_encoder": lambda stack: (image_encoder, {"model": model()}),
    "ChunkedPrefill": chat,
    "ChunkedPrefill.prefill": prefill,
    "ChunkedPrefill.chunks": chunks,
    "prefill_batch": batch,
    "agree_over": agree,
    "processor_fingerprint": lambda stack: (processor_fingerprint, {"processor": Processor()}),
    "InvalidateCallback": callback,
    "invalidate_after": after,
    "CacheCollector": collector,
}
