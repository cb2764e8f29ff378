"""`encode_each_alone`: a stock model that encodes each item of a call with a call of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from tiny_family import Call
from tiny_zoo import Medium, ZooModel
from torch import Tensor, nn

SEEDS = range(5)
"""The seeds of all items of the tests."""


def encode_each_alone(zoo: ZooModel, model: nn.Module, plain: nn.Module) -> nn.Module:
    """Make the stock methods of `model` encode one item per call, and return `model`.

    The calls are those of `plain`, an equal model: some models encode videos with the method for images. The
    items of a call are found by their values, so beams and batches may repeat and order them.
    """
    owner = zoo.features_owner(model)
    for modality, medium in zoo.media.items():
        name = f"get_{modality}_features"
        encode = _each_alone(getattr(owner, name), zoo.stock(plain, modality), medium)
        setattr(owner, name, encode)
    return model


def _each_alone(method: Callable[..., Any], stock: Callable[..., Any], medium: Medium) -> Callable[..., Any]:
    signature = inspect.signature(method)
    items = [medium.make(seed) for seed in SEEDS]

    @functools.wraps(method)
    def encode(*args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(*args, **kwargs).arguments)
        given.update(given.pop("kwargs", {}))
        # Some versions have another name for the pixels of videos. The pixels are always the first argument.
        _, pixels = first = next(iter(given.items()))
        own = {*items[0], "return_dict", first[0]}
        options = {name: value for name, value in given.items() if name not in own}
        chosen = [cast(item, pixels.dtype) for item in _items_in(pixels, items, items_axis(medium))]
        return medium.joined([stock(**item, **options) for item in chosen])

    return encode


def items_axis(medium: Medium) -> int:
    """The dimension of the pixels along which a call joins its items."""
    (alone, two), *_ = zip(medium.make(0).values(), medium.join([medium.make(0)] * 2).values(), strict=True)
    return next(axis for axis, size in enumerate(alone.shape) if two.shape[axis] != size)


def cast(call: Call, dtype: torch.dtype) -> Call:
    """The call with the pixels and samples in this dtype."""
    return {name: _cast(value, dtype) for name, value in call.items()}


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_cast(part, dtype) for part in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _items_in(pixels: Tensor, items: list[Call], axis: int) -> list[Call]:
    """The items with these pixels, in order. Prompts are filled to the most items with zeros."""
    rows = _rows(pixels, axis)
    found, start = [], 0
    while start < len(rows):
        if axis and not rows[start].any():
            start += 1
            continue
        item, length = _first_item(rows[start:], items, axis)
        found.append(item)
        start += length
    return found


def _rows(pixels: Tensor, axis: int) -> Tensor:
    """The pixels with the dimension of the items first. If dimension 0 is prompts, it joins both."""
    return pixels.movedim(axis, 1).flatten(0, 1) if axis else pixels


def _first_item(rows: Tensor, items: list[Call], axis: int) -> tuple[Call, int]:
    for item in items:
        own = _rows(next(iter(item.values())), axis).to(rows.dtype)
        part = rows[tuple(slice(size) for size in own.shape)]  # without the padding to the largest item
        if torch.equal(part, own):
            return item, len(own)
    raise AssertionError("the call has an item of an unknown seed")
