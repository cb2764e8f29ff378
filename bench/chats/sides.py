"""The contenders of the chat benches: engines' strategies, and vitcache with rows in either tier."""

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
from vitcache.pipeline.feature_mover import RING_BYTES

ENGINES = {"no cache": NoCache, "request key": RequestKey, "dict": ImageDict}
VITCACHE, COMPUTED, ON_HOST = "vitcache", "vitcache, keys computed", "vitcache, host tier"
SIDES = (*ENGINES, VITCACHE, COMPUTED, ON_HOST)
# Relative difference. The last bits of an image's rows depend on the size of the encoded batch; the rows of
# two different images differ by 1.4.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@dataclass
class Side:
    """A contender.

    `pipeline` is a `VisionPipeline` or an `Engine`; `items` are its inputs. The bench calls `between_turns`
    after each turn. `kept_bytes` returns the bytes of device memory that rows occupy between calls.
    """

    pipeline: Any
    items: list[Item]
    kept_bytes: Callable[[], int]
    between_turns: Callable[[], object] = lambda: None


def open_side(
    name: str,
    chat: Chat,
    encode: Encode,
    ring: PinnedRing | None,
    stack: ExitStack,
    *,
    images: int,
    device_images: int = 1,
) -> Side:
    """Make a contender that is closed together with `stack`.

    vitcache's device tier has space for `images` images. If there is a host tier, the host tier has space for
    ``images + device_images`` images, and the device tier for `device_images` images.
    """
    if name in ENGINES:
        engine = ENGINES[name](encode, chat.model.config.image_token_id)
        return Side(engine, chat.items, lambda: engine.kept_bytes)
    on_host = name == ON_HOST
    cache = EmbeddingCache(
        chat.row_width,
        dtype=chat.weight.dtype,
        device=chat.weight.device,
        device_bytes=chat.page_bytes(device_images if on_host else images),
        host_bytes=chat.page_bytes(images + device_images) if on_host else 0,
    )
    stack.callback(cache.close)
    pipeline = stack.enter_context(VisionPipeline(encode, cache, ring=ring))
    items = chat.without_keys() if name == COMPUTED else chat.items
    side = Side(pipeline, items, lambda: cache.stats().device_capacity_bytes)
    if on_host:
        # The row is expanded, so that the contender allocates no device memory outside of its cache.
        row = torch.zeros(1, chat.row_width, dtype=cache.dtype, device=cache.device)
        other_rows = row.expand(chat.rows * device_images, -1)
        # This put stands for another request. It demotes the chat's images from the small device tier to the
        # host tier.
        side.between_turns = lambda: cache.put(image_key(chat.images), other_rows)
    return side


def check_built(name: str, built: Tensor, expected: Tensor, rounded_to: torch.dtype | None = None) -> None:
    """Raise RuntimeError if the relative difference of the built and the expected rows exceeds `TOLERANCE`.

    `rounded_to` is the dtype that the contender's features were rounded to, if it is coarser than the rows'.
    """
    difference = float((built.float() - expected.float()).norm() / expected.float().norm())
    tolerance = TOLERANCE[rounded_to or built.dtype]
    if not difference <= tolerance:  # also if the difference is NaN
        raise RuntimeError(
            f"{name} built wrong rows: expected a relative difference of at most {tolerance:g}, "
            f"got {difference:.2g}: it gets no number"
        )


def open_ring(device: torch.device, stack: ExitStack) -> PinnedRing | None:
    """Open one ring for all vitcache contenders, so that no time contains page-locking; None on the CPU."""
    if device.type == "cpu":
        return None
    return stack.enter_context(PinnedRing(RING_BYTES, backend="cuda", device=device))


def stack_levels(inputs_embeds: Tensor, deepstack: Tensor | None) -> Tensor:
    """Copy `inputs_embeds` and the deepstack levels into one tensor ``(1 + levels, tokens, hidden)``."""
    levels = [] if deepstack is None else [deepstack]
    return torch.cat([inputs_embeds[None], *levels])
