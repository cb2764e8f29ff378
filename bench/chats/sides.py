"""The contenders of the chat benches: what engines do, and vitcache with its rows in either tier."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitcache import EmbeddingCache, Item, PinnedRing, VisionPipeline
from vitcache.bench.chats.chat import Chat, image_key
from vitcache.bench.chats.engines import Encode, ImageDict, NoCache, RequestKey

ENGINES = {"no cache": NoCache, "request key": RequestKey, "dict": ImageDict}
VITCACHE, COMPUTED, ON_HOST = "vitcache", "vitcache, keys computed", "vitcache, host tier"
SIDES = (*ENGINES, VITCACHE, COMPUTED, ON_HOST)
RING_BYTES = 128 << 20
# Rows of an image encoded alone and beside others differ in their last bits; another image's differ by 1.4.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@dataclass
class Side:
    """A contender.

    `pipeline` is a `VisionPipeline` or an `Engine`, `items` are what it is given, `rest` is what happens
    between two turns, `kept_bytes` tells the device memory that its rows take between calls.
    """

    pipeline: Any
    items: list[Item]
    kept_bytes: Callable[[], int]
    rest: Callable[[], object] = lambda: None


def open_side(
    name: str,
    chat: Chat,
    encode: Encode,
    ring: PinnedRing | None,
    stack: ExitStack,
    *,
    images: int,
    before_host: int = 1,
) -> Side:
    """Make a contender that lasts as long as `stack`.

    vitcache gets room for `images` images: in the device tier or, with a host tier, there, behind a device
    tier for `before_host` images.
    """
    if name in ENGINES:
        engine = ENGINES[name](encode, chat.model.config.image_token_id)
        return Side(engine, chat.items, lambda: engine.kept_bytes)
    on_host = name == ON_HOST
    cache = EmbeddingCache(
        chat.row_width,
        dtype=chat.weight.dtype,
        device=chat.weight.device,
        device_bytes=chat.page_bytes(before_host if on_host else images),
        host_bytes=chat.page_bytes(images + before_host) if on_host else 0,
    )
    stack.callback(cache.close)
    pipeline = stack.enter_context(VisionPipeline(encode, cache, ring=ring))
    items = chat.without_keys() if name == COMPUTED else chat.items
    side = Side(pipeline, items, lambda: cache.stats().device_capacity_bytes)
    if on_host:
        # One row stands for all: the contender is to have no device memory beside its cache.
        other = torch.zeros(1, chat.row_width, dtype=cache.dtype, device=cache.device)
        others = other.expand(chat.rows * before_host, -1)
        # What other requests put into the small device tier pushes the chat's images to the host tier.
        side.rest = lambda: cache.put(image_key(chat.images), others)
    return side


def check_built(name: str, built: Tensor, expected: Tensor, rounded_to: torch.dtype | None = None) -> None:
    """Raise RuntimeError if a contender built other rows than are expected, but for their last bits.

    `rounded_to` is what its features were rounded to, if that is less than the dtype of the rows.
    """
    difference = float((built.float() - expected.float()).norm() / expected.float().norm())
    if not difference <= TOLERANCE[rounded_to or built.dtype]:
        raise RuntimeError(f"{name} built other rows ({difference:.2g} off): it gets no number")


def open_ring(device: torch.device, stack: ExitStack) -> PinnedRing | None:
    """The ring that all vitcache contenders share, so that none pays for page-locking; None on the CPU."""
    if device.type == "cpu":
        return None
    return stack.enter_context(PinnedRing(RING_BYTES, backend="cuda", device=device))
