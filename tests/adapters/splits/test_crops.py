"""`split_by_crop`: items are the images without their padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitcache.adapters.splits.call_parts import CallParts
from vitcache.adapters.splits.crops import split_by_crop

SIZES = [[4, 6], [2, 3], [4, 3]]


def images() -> list[Tensor]:
    return [torch.randn(1, 3, *size) for size in SIZES]


def padded(images: list[Tensor], rows: int, columns: int, fill: float = 0.0) -> Tensor:
    pixels = torch.full((len(images), 3, rows, columns), fill)
    for number, image in enumerate(images):
        pixels[number, :, : image.shape[2], : image.shape[3]] = image
    return pixels


def split(pixels: Tensor, sizes: object) -> CallParts:
    parts = split_by_crop(None, {"pixel_values": pixels, "image_sizes": sizes})
    assert parts is not None
    return parts


@pytest.mark.parametrize("as_sizes", [torch.tensor, list], ids=["tensor", "list"])
def test_items_are_the_images_without_padding(as_sizes: type) -> None:
    originals = images()
    parts = split(padded(originals, 4, 6), as_sizes(SIZES))
    assert parts.names == ("pixel_values", "image_sizes")
    assert parts.bounds is None
    for number, (image, size) in enumerate(zip(originals, SIZES, strict=True)):
        call = parts.item_call(number)
        assert torch.equal(call.pixels, image)
        assert call.arguments["image_sizes"] == [size]
        assert parts.shapes[number] == tuple(image.shape)


def test_images_of_full_size_are_consecutive_elements() -> None:
    pixels = torch.randn(2, 3, 4, 6)
    parts = split(pixels, torch.tensor([[4, 6]] * 2))
    assert parts.bounds is not None
    for number, (first, last) in enumerate(parts.bounds):
        assert torch.equal(
            pixels.flatten()[first:last].view(parts.shapes[number]), pixels[number : number + 1]
        )


@pytest.mark.parametrize("sizes", [None, ...], ids=["None", "absent"])
def test_without_sizes_each_index_is_one_image(sizes: object) -> None:
    pixels = torch.randn(2, 3, 4, 6)
    parts = split_by_crop(None, {"pixel_values": pixels} | ({} if sizes is ... else {"image_sizes": sizes}))
    assert parts is not None
    assert parts.names == ("pixel_values",)
    assert torch.equal(parts.item_call(1).pixels, pixels[1:])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[4, 6]], "pixel_values must have 1 images for this image_sizes, got 2"),
        ([[4, 6], [5, 6]], r"pixel_values must have at least 5 rows of pixels for image_sizes\[1\], got 4"),
        (
            [[4, 9], [4, 6]],
            r"pixel_values must have at least 9 columns of pixels for image_sizes\[0\], got 6",
        ),
    ],
)
def test_wrong_numbers_raise_with_both_numbers(sizes: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(torch.zeros(2, 3, 4, 6), sizes)
