"""The keys of items that differ in one value beside the pixels: in a mask, in positions, sizes or a dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcache.adapters.call_keys import key_options, keys_of
from vitcache.adapters.families import FAMILIES
from vitcache.adapters.splits.call_parts import as_parts
from vitcache.adapters.splits.companions import add_tensors, identities_of
from vitcache.adapters.splits.leading_dim import split_by_index, split_by_leading_dim

Call = dict[str, Any]


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)


CALLS: dict[str, tuple[str, Call]] = {
    "aria": ("image", {"pixel_values": torch.randn(2, 3, 4, 4), "pixel_mask": ones(2, 4, 4)}),
    "deepseek_vl_hybrid": (
        "image",
        {"pixel_values": torch.randn(2, 3, 2, 2), "high_res_pixel_values": torch.ones(2, 3, 4, 4)},
    ),
    "gemma4": ("image", {"pixel_values": torch.randn(2, 9, 5), "image_position_ids": ones(2, 9, 2)}),
    "gemma4 video": (
        "video",
        {
            "pixel_values_videos": torch.randn(3, 9, 5),
            "video_position_ids": ones(3, 9, 2),
            "num_frames_per_video": torch.tensor([1, 2]),
        },
    ),
    "granite_docling": (
        "image",
        {
            "pixel_values": torch.randn(2, 1, 3, 4, 4),
            "pixel_attention_mask": ones(2, 1),
            "tile_fine_mask": ones(2),
        },
    ),
    "idefics2": (
        "image",
        {"pixel_values": torch.randn(1, 2, 3, 4, 4), "pixel_attention_mask": ones(1, 2, 4, 4)},
    ),
    "idefics3": (
        "image",
        {"pixel_values": torch.randn(1, 2, 3, 4, 4), "pixel_attention_mask": ones(1, 2, 4, 4)},
    ),
    "lfm2_vl": (
        "image",
        {
            "pixel_values": torch.randn(2, 9, 5),
            "spatial_shapes": ones(2, 2),
            "pixel_attention_mask": ones(2, 9),
        },
    ),
    "minicpmv4_6": (
        "image",
        {"pixel_values": torch.randn(1, 3, 2, 2 * (6 + 6)), "target_sizes": torch.tensor([[2, 3], [2, 3]])},
    ),
    "video_llama_3": (
        "image",
        {
            "pixel_values": torch.randn(8, 5),
            "image_grid_thw": torch.tensor([[1, 2, 2]] * 2),
            "image_merge_sizes": ones(2),
        },
    ),
}


def keys(name: str, modality: str, call: Call) -> list[bytes]:
    parts = as_parts(FAMILIES[name.split()[0]].splits[modality](None, call))
    assert parts is not None
    pixels = next(iter(call.values()))
    options = key_options({}, None)
    assert options is not None
    return keys_of(parts, pixels, modality, *options, b"namespace")


def last_changed(value: Tensor, number: int = 5) -> Tensor:
    """The tensor with another last value: one of the last item."""
    changed = value.clone()
    changed.view(-1)[-1] = number
    return changed


# The sizes of MiniCPM and the numbers of frames determine the pixels of an item: they cannot change alone.
CHANGES = [
    (name, argument)
    for name, (_, call) in CALLS.items()
    for argument in [*call][1:]
    if argument not in ("target_sizes", "num_frames_per_video", "image_grid_thw")
]


@pytest.mark.parametrize(("name", "argument"), CHANGES)
def test_another_value_beside_the_pixels_changes_the_key_of_its_item(name: str, argument: str) -> None:
    modality, call = CALLS[name]
    first, second = keys(name, modality, call)
    assert keys(name, modality, call) == [first, second]
    for number in (5, 0) if "mask" in argument and name != "granite_docling" else (5,):
        changed = call | {argument: last_changed(call[argument], number)}
        same, other = keys(name, modality, changed)
        assert same == first
        assert other != second


@pytest.mark.parametrize(("name", "argument"), CHANGES)
def test_another_dtype_beside_the_pixels_changes_the_keys(name: str, argument: str) -> None:
    modality, call = CALLS[name]
    changed = call | {argument: call[argument].to(torch.int32)}
    assert not {*keys(name, modality, call)} & {*keys(name, modality, changed)}


@pytest.mark.parametrize(("name", "argument"), CHANGES)
def test_items_of_equal_pixels_and_other_values_beside_them_have_two_keys(name: str, argument: str) -> None:
    modality, call = CALLS[name]
    pixel_name, pixels = next(iter(call.items()))
    equal = call | {pixel_name: torch.ones_like(pixels)}
    if name != "gemma4 video":  # its videos have other numbers of frames
        assert len({*keys(name, modality, equal)}) == 1
    assert len({*keys(name, modality, equal | {argument: last_changed(call[argument])})}) == 2


def test_sizes_of_as_many_patches_in_another_order_change_the_key() -> None:
    _, call = CALLS["minicpmv4_6"]
    first, second = keys("minicpmv4_6", "image", call)
    sizes = torch.tensor([[2, 3], [3, 2]])
    same, other = keys("minicpmv4_6", "image", call | {"target_sizes": sizes})
    assert same == first
    assert other != second


def padded(size: int, *images: Tensor) -> Call:
    """One prompt with these images and their mask, padded to squares of this size."""
    shape = len(images), size, size
    pixels, masks = torch.zeros(1, shape[0], 3, size, size), torch.zeros(1, *shape, dtype=torch.long)
    for place, image in enumerate(images):
        height, width = image.shape[1:]
        pixels[0, place, :, :height, :width] = image
        masks[0, place, :height, :width] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": masks}


def test_image_of_a_mask_of_ones_has_the_same_key_in_a_call_with_padding() -> None:
    small, large = torch.randn(3, 4, 4), torch.randn(3, 6, 6)
    [alone] = keys("idefics2", "image", padded(4, small))
    together = padded(6, large, small)
    assert keys("idefics2", "image", together)[1] == alone
    together["pixel_attention_mask"][0, 1, 0, 0] = 0
    with_a_hole = keys("idefics2", "image", together)[1]
    assert with_a_hole != alone
    hole_alone = padded(4, small)
    hole_alone["pixel_attention_mask"][0, 0, 0, 0] = 0
    assert keys("idefics2", "image", hole_alone) == [with_a_hole]


def test_image_with_its_padding_has_another_key_for_each_size_of_its_mask() -> None:
    """Of Idefics 3: an item has the padding, so the valid size alone tells two images apart."""
    calls = [padded(4, torch.ones(3, 4, 4)) for _ in range(4)]
    for rows, call in enumerate(calls):
        call["pixel_attention_mask"][..., rows:, :] = 0
    assert len({key for call in calls for key in keys("idefics3", "image", call)}) == len(calls)


@pytest.mark.parametrize("name", CALLS)
def test_keys_of_items_do_not_depend_on_strides(name: str) -> None:
    """Keys of items that are consecutive elements, and of views whose elements have gaps."""
    modality, call = CALLS[name]
    apart = {key: torch.stack([value, value], dim=-1)[..., 0] for key, value in call.items()}
    assert keys(name, modality, apart) == keys(name, modality, call)


@pytest.mark.parametrize(
    "make",
    [
        lambda numbers: torch.tensor(numbers),
        lambda numbers: torch.tensor(numbers, dtype=torch.int32),
        lambda numbers: torch.tensor(numbers, dtype=torch.float32),
        lambda numbers: torch.tensor(numbers) == 1,
    ],
    ids=["int64", "int32", "float32", "bool"],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_identities_are_equal_for_equal_parts_alone(
    make: Callable[[list[list[int]]], Tensor], size: int
) -> None:
    one, two, three = identities_of("mask", make([[1] * size, [0] * size, [1] * size]))
    assert one == three != two
    assert identities_of("mask", make([[1] * size])) == [one]
    assert identities_of("other", make([[1] * size])) != [one]
    assert identities_of("mask", make([[1] * size])[..., None]) != [one]


def test_identities_of_no_items_are_empty() -> None:
    assert identities_of("mask", torch.zeros(0, 3, dtype=torch.long)) == []
    assert identities_of("mask", torch.zeros(0, 3)) == []


def test_either_of_two_equal_masks_is_part_of_the_key_by_its_name() -> None:
    call = {"pixel_values": torch.ones(1, 3), "one": ones(1, 3), "two": ones(1, 3)}
    options = key_options({}, None)
    assert options is not None
    found = {
        keys_of(split_by_index(*names)(None, call), call["pixel_values"], "image", *options, b"")[0]
        for names in (("one",), ("two",), ("one", "two"), ())
    }
    assert len(found) == 4


def test_add_tensors_refuses_another_number_of_rows() -> None:
    parts = split_by_leading_dim(None, {"pixel_values": torch.ones(2, 3)})
    with pytest.raises(ValueError, match="mask must have 2 rows for this pixel_values, got 1"):
        add_tensors(parts, {"mask": ones(1, 3)})
