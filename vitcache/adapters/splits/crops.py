"""`split_by_crop`: images that are padded to the largest image of the call, and their sizes."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from vitcache.adapters.splits.call_parts import CallParts, bounds_of, check_total
from vitcache.adapters.splits.leading_dim import split_by_leading_dim

_SIZES = "image_sizes"


def split_by_crop(config: Any, arguments: dict[str, Any]) -> CallParts | None:
    """Split `pixel_values` `(images, C, H, W)` into images of their own `image_sizes` `(images, 2)`.

    The padding at the right and at the bottom depends on the other images, so it is not part of the item.
    Without `image_sizes`, each index of the first dimension is one image.
    """
    sizes = arguments.get(_SIZES)
    if sizes is None:
        return split_by_leading_dim(config, arguments)
    pixel_name, pixels = next(iter(arguments.items()))
    heights_and_widths = torch.as_tensor(sizes, device="cpu").tolist()
    check_total(pixel_name, len(pixels), "images", _SIZES, len(heights_and_widths))
    channels, *padded = pixels.shape[1:]
    for image, size in enumerate(heights_and_widths):
        for name, found, expected in zip(("rows", "columns"), padded, size, strict=True):
            if found < expected:
                raise ValueError(
                    f"{pixel_name} must have at least {expected} {name} of pixels for {_SIZES}[{image}], "
                    f"got {found}"
                )

    regions = [
        (slice(image, image + 1), slice(None), slice(height), slice(width))
        for image, (height, width) in enumerate(heights_and_widths)
    ]

    def item_arguments(item: int) -> dict[str, Any]:
        # A list, because the stock methods read these numbers on the host: they would wait for a CUDA tensor.
        return {pixel_name: pixels[regions[item]], _SIZES: [heights_and_widths[item]]}

    is_padded = any(size != padded for size in heights_and_widths)
    bounds = None if is_padded else bounds_of(range(len(pixels) + 1), channels * prod(padded))
    shapes = [(1, channels, *size) for size in heights_and_widths]
    # The shape of an item's pixels, which is part of every key, tells its size.
    return CallParts((pixel_name, _SIZES), bounds, shapes, None, item_arguments, regions=regions)
