"""The items of a call, by model family: which items share an entry, and which have their own."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from attached import (
    assert_same_bits,
    each_family,
    features,
    form,
    image_rows,
    logits,
    pair,
    plain_kernels,  # noqa: F401
    tensors,
)
from tiny_models import (
    FAMILIES,
    GRID_FAMILIES,
    VIDEO,
    Call,
    TinyFamily,
    joined_outputs,
    stock_method,
)

from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


VIDEO_FAMILIES = [*GRID_FAMILIES, "llava_onevision"]


def video(name: str, seed: int) -> Call:
    """The arguments of `get_video_features` for one video."""
    if name == "llava_onevision":
        return {"pixel_values_videos": torch.randn(1, 2, 3, 8, 8)}
    names = "pixel_values_videos", "video_grid_thw"
    return {each: GRID_FAMILIES[name].clip(seed)[each] for each in names}


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_equal_videos_in_two_calls_are_encoded_once(name: str) -> None:
    family = FAMILIES[name]
    _, model, attachment, tower = pair(family)
    videos = [video(name, seed) for seed in (0, 1, 2)]
    both = [torch.cat(parts) for parts in zip(*(video.values() for video in videos), strict=True)]
    stock = stock_method(family.model(), "video")
    with torch.no_grad():
        expected = joined_outputs([stock(*video.values()) for video in videos])
        for encodes in (3, 0):
            output = model.base_model.get_video_features(*both)
            assert_same_bits(output, expected)
            assert form(output) == form(stock(*both))
            assert tower.take() == encodes
    assert attachment.stats() == AttachStats(encoded=3, hits=3)


def test_same_pixels_as_image_and_as_video_are_two_entries() -> None:
    family = FAMILIES["qwen3_vl"]
    _, model, attachment, tower = pair(family)
    arguments = family.call(0).values()
    with torch.no_grad():
        for method in (model.model.get_image_features, model.model.get_video_features) * 2:
            method(*arguments)
    assert tower.take() == len(attachment.cache) == 2


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_prompt_with_image_and_video_gives_the_stock_logits(name: str) -> None:
    family = FAMILIES[name]
    stock, model, _, tower = pair(family)
    if name == "llava_onevision":
        # Its video has three placeholders: two frames, and a break that the stock method or forward adds.
        prompt = family.prompt(stock, 0)
        for key, value in family.chat([3], VIDEO).items():
            prompt[key] = torch.cat([prompt[key], value], dim=1)
        prompts, encoded = [prompt | video(name, 0)], 2
    elif GRID_FAMILIES[name].is_glm:  # its stock forward refuses images and videos in one call
        mixed = GRID_FAMILIES[name].mixed_prompt
        prompts, encoded = [mixed(("image", 0)), mixed(("video", 0)), mixed(("video", 1))], 3
    else:
        media = ("image", 0), ("video", 0), ("image", 1)
        prompts, encoded = [GRID_FAMILIES[name].mixed_prompt(*media)], 3
    for encodes in (encoded, 0):
        for prompt in prompts:
            assert torch.equal(logits(model, prompt), logits(stock, prompt))
        assert tower.take() == encodes


def test_stock_forward_of_glm4v_refuses_a_prompt_with_an_image_and_a_video() -> None:
    """The reason why `stock_logits` builds the input of its language model."""
    family = GRID_FAMILIES["glm4v"]
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        logits(family.model(), family.mixed_prompt(("image", 0), ("video", 0)))


@pytest.mark.parametrize("name", GRID_FAMILIES)
def test_each_image_and_video_changes_the_stock_logits(name: str) -> None:
    family = GRID_FAMILIES[name]
    model = family.model()
    prompt = family.mixed_prompt(("image", 0), ("video", 0), ("image", 1), ("video", 1))
    before = family.stock_logits(model, prompt)[0, -1]
    for pixels, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        for first in (0, int(prompt[grids][0].prod())):
            changed = prompt[pixels].clone()
            changed[first] += 1
            after = family.stock_logits(model, prompt | {pixels: changed})[0, -1]
            assert (after - before).abs().max() > 1e-3 * before.abs().max()


def test_same_patches_in_another_grid_are_another_entry() -> None:
    family = FAMILIES["qwen3_vl"]
    _, model, _, tower = pair(family)
    pixels = family.picture(0)["pixel_values"]
    for grid in ([1, 4, 4], [1, 2, 8], [1, 8, 2], [1, 4, 4]):
        call = {"pixel_values": pixels, "image_grid_thw": torch.tensor([grid])}
        with torch.no_grad():
            assert_same_bits(features(model, call), stock_method(family.model(), "image")(**call))
    assert tower.take() == 3


@pytest.mark.parametrize("name", ["llava_onevision", "internvl"])
def test_key_includes_the_feature_layer_and_the_strategy(name: str) -> None:
    family = FAMILIES[name]
    stock, model, attachment, tower = pair(family)
    call = family.call(0)
    # With the other strategy, the patches do not form a square, and the stock model fails, too.
    strategy = {"llava_onevision": "full", "internvl": "default"}[name]
    first_features = []
    for layer in (-1, -2, 1, None):
        options = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
        output = features(model, call, **options)
        assert_same_bits(output, features(stock, call, **options))
        first_features.append(tensors(output)[0])
    assert not torch.equal(first_features[0], first_features[1])
    assert tower.take() == 3  # None stands for the config's -1
    model.base_model.config.vision_feature_layer = -2
    assert torch.equal(tensors(features(model, call))[0], first_features[1])
    assert tower.take() == 0
    assert attachment.stats().hits == 2


def test_select_strategy_with_fewer_rows_has_its_own_entry() -> None:
    family = FAMILIES["llava_onevision"]
    stock, model, _, tower = pair(family)
    call = family.call(0, 0) | {"batch_num_images": torch.tensor([2])}
    for strategy, rows in (("full", 5), ("default", 4), ("full", 5)):
        output = features(model, call, vision_feature_select_strategy=strategy)
        with torch.no_grad():
            batched = stock_method(stock, "image")(**call, vision_feature_select_strategy=strategy)
        assert [len(item) for item in output.pooler_output] == [rows, rows]
        torch.testing.assert_close(output.pooler_output, batched.pooler_output)
    assert tower.take() == 2


def test_image_among_several_has_one_tile_and_its_own_entry() -> None:
    family = FAMILIES["llava_onevision"]
    stock, model, _, tower = pair(family)
    groups = torch.tensor([2, 1])
    call = family.call(0, 1, 1) | {"batch_num_images": groups}
    sizes = call["image_sizes"]
    with torch.no_grad():
        tiles = call["pixel_values"]
        expected = joined_outputs(
            [
                stock_method(stock, "image")(tiles[0:1, :1], sizes[0:1], batch_num_images=groups[:1]),
                stock_method(stock, "image")(tiles[1:2, :1], sizes[1:2], batch_num_images=groups[:1]),
                stock_method(stock, "image")(tiles[2:3, :3], sizes[2:3], batch_num_images=groups[1:]),
            ]
        )
    assert_same_bits(features(model, call), expected)
    assert tower.take() == 3
    in_a_row = torch.cat([tiles[0, :1], tiles[1, :1], tiles[2, :3]])
    assert_same_bits(features(model, call | {"pixel_values": in_a_row}), expected)


def test_padding_to_the_tiles_of_other_images_is_not_part_of_the_key() -> None:
    family = FAMILIES["llava_onevision"]
    _, model, _, tower = pair(family)
    features(model, family.call(0))
    features(model, family.call(0, 2))
    assert tower.take() == 2


@each_family
def test_same_pixels_in_another_dtype_are_another_entry(family: TinyFamily) -> None:
    stock, model, _, tower = pair(family, torch.bfloat16)
    call = family.call(0)
    half = call | {"pixel_values": call["pixel_values"].to(torch.bfloat16)}
    for pixels in (call, half, call, half):
        assert_same_bits(features(model, pixels), features(stock, pixels))
    assert tower.take() == 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "qwen3_vl",
            {"image_grid_thw": torch.tensor([[1, 4, 2]])},
            "must have 8 patches for this image_grid_thw, got 16",
        ),
        (
            "llava_onevision",
            {"image_sizes": torch.tensor([[8, 8]] * 2)},
            "must have 2 images for this image_sizes, got 1",
        ),
        (
            "llava_onevision",
            {"batch_num_images": [3]},
            "image_sizes must have 3 sizes for this batch_num_images, got 1",
        ),
        (
            "llava_onevision",
            {"pixel_values": torch.zeros(3, 3, 8, 8)},
            "must have 2 tiles for this image_sizes, got 3",
        ),
    ],
)
def test_wrong_number_of_patches_images_or_tiles_raises_with_both_numbers(
    name: str, change: Call, message: str
) -> None:
    model = FAMILIES[name].model()
    attachment = attach(model)
    with pytest.raises(ValueError, match=message):
        image_rows(model, FAMILIES[name].call(0) | change)
    assert len(attachment.cache) == 0
