"""Modes that call the model: its logits and its loss."""

from __future__ import annotations

import torch
from tiny_family import Call
from torch import Tensor

from placed_modes.side import TOKENS, Mode, Side, first_tokens


def _images(*seeds: int) -> Mode:
    return lambda side: [side.logits(side.images(*seeds))]


def _padded(where: str) -> Mode:
    return lambda side: [side.logits(side.two_chats(where))]


def _loss(side: Side) -> list[Tensor]:
    prompt = side.images(0, 1)
    types = {"token_type_ids": torch.zeros_like(prompt["input_ids"])}  # PaliGemma needs them with labels
    if side.zoo.name != "paligemma":
        types = {}
    output = side.model(**prompt, **types, labels=prompt["input_ids"])
    return [output.loss, output.logits]


def _new_cache(side: Side) -> Call:
    from transformers import DynamicCache

    config = side.model.config.get_text_config()
    return {"past_key_values": DynamicCache(config=config), "use_cache": True}


def _second_turn(side: Side) -> list[Tensor]:
    """The second turn brings an image. The KV cache has all tokens of the first but its last."""
    cache = _new_cache(side)
    first, both = side.images(0), side.images(0, 1)
    length = first["input_ids"].shape[1] - 1
    logits = side.logits(first_tokens(first, length), **cache)
    second = {name: value for name, value in both.items() if name in TOKENS}
    for name in TOKENS:
        if name in second and name != "attention_mask":
            second[name] = second[name][:, length:]
    if "image_grid_thw" in both:  # the positions need a mask of the new tokens
        del second["attention_mask"]
    return [logits, side.logits(second | side.media([[("image", 1)]]), **cache)]


def _prefix_and_suffix(side: Side) -> list[Tensor]:
    """PaliGemma's prefix, whose tokens see each other, and suffix; then a second image on the KV cache."""
    cache = _new_cache(side)
    first, second = side.images(0), side.images(1)
    types = torch.zeros_like(first["input_ids"])
    types[:, -2:] = 1
    logits = side.logits(first | {"token_type_ids": types}, **cache)
    length = first["input_ids"].shape[1] + second["input_ids"].shape[1]
    second["token_type_ids"] = torch.zeros_like(second["input_ids"])
    second["attention_mask"] = torch.ones(1, length, dtype=torch.long)
    return [logits, side.logits(second, **cache)]


CALLS: dict[str, Mode] = {
    "one image": _images(0),
    "two images": _images(0, 1),
    "three images": _images(1, 0, 2),
    "padded left": _padded("left"),
    "padded right": _padded("right"),
    "second turn": _second_turn,
    "loss": _loss,
}

SUFFIX = {"prefix and suffix": _prefix_and_suffix}
"""A mode of PaliGemma."""
