"""The items of a call are those of calls for one item each, for the outputs of the stock processors."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL")

from PIL import Image
from torch import Tensor

from vitcache.adapters.families import FAMILIES
from vitcache.adapters.splits.call_parts import as_parts

pytestmark = pytest.mark.transformers

ARGUMENTS = {
    "aria": ("pixel_values", "pixel_mask"),
    "deepseek_ocr2": ("pixel_values", "pixel_values_local", "num_local_patches"),
    "gemma4": ("pixel_values", "image_position_ids"),
    "granite_docling": ("pixel_values", "pixel_attention_mask", "tile_fine_mask"),
    "idefics2": ("pixel_values", "pixel_attention_mask"),
    "idefics3": ("pixel_values", "pixel_attention_mask"),
    "minicpmv4_6": ("pixel_values", "target_sizes"),
    "smolvlm": ("pixel_values", "pixel_attention_mask"),
}
"""The arguments of the stock method, by model type, for image processors that do not need torchvision."""

SIZES = {"deepseek_ocr2": ((300, 420), (500, 1000))}  # the second one has local tiles
NESTED = {"granite_docling", "idefics2", "idefics3", "smolvlm"}


def picture(seed: int, width: int, height: int) -> Image.Image:
    colors = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(colors)


def processed(model_type: str, pictures: list[Image.Image]) -> dict[str, Any]:
    name = f"image_processing_pil_{model_type}"
    try:
        module = importlib.import_module(f"transformers.models.{model_type}.{name}")
    except ImportError:
        pytest.skip(f"this transformers has no {name}")
    (cls,) = (
        value
        for key, value in vars(module).items()
        if key.endswith("ImageProcessorPil") and value.__module__ == module.__name__
    )
    images = [pictures] if model_type in NESTED else pictures
    outputs = cls()(images, return_tensors="pt")
    return {name: outputs.get(name) for name in ARGUMENTS[model_type]}


def items(model_type: str, modality: str, call: dict[str, Any]) -> list[dict[str, Any]]:
    parts = as_parts(FAMILIES[model_type].splits[modality](None, call))
    assert parts is not None
    return [parts.item_call(item).arguments for item in range(len(parts.shapes))]


def assert_equal(items: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(items) == len(expected)
    for item, other in zip(items, expected, strict=True):
        assert list(item) == list(other)
        for name, value in item.items():
            if isinstance(value, Tensor):
                assert torch.equal(value, other[name])
            else:
                assert value == other[name]


@pytest.mark.parametrize("model_type", ARGUMENTS)
def test_items_of_two_images_of_a_prompt_are_those_of_each_image_alone(model_type: str) -> None:
    one, two = (
        picture(seed, *size) for seed, size in enumerate(SIZES.get(model_type, ((300, 420), (500, 700))))
    )
    alone = [items(model_type, "image", processed(model_type, [each])) for each in (one, two)]
    assert_equal(items(model_type, "image", processed(model_type, [one, two])), [*alone[0], *alone[1]])
    assert_equal(items(model_type, "image", processed(model_type, [two, one])), [*alone[1], *alone[0]])


def test_items_of_two_clips_of_a_prompt_are_the_valid_frames_of_each_clip_alone() -> None:
    """Of Gemma 4. The extractor of Gemma 3n gives a clip other valid frames beside a longer clip."""
    from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor

    clips = [np.random.default_rng(seed).normal(size=length) for seed, length in enumerate((5000, 9100))]

    def items_of(*sounds: Any) -> list[dict[str, Any]]:
        outputs = Gemma4AudioFeatureExtractor()(list(sounds), return_tensors="pt")
        names = "input_features", "input_features_mask"
        return items("gemma4", "audio", {name: outputs[name] for name in names})

    def valid(item: dict[str, Any]) -> dict[str, Any]:
        [end] = item["input_features_mask"].sum(-1).tolist()
        return {name: value[:, :end] for name, value in item.items()}

    alone = [valid(item) for clip in clips for item in items_of(clip)]  # the extractor may pad a single clip
    assert_equal(items_of(*clips), alone)
    assert_equal(items_of(*reversed(clips)), alone[::-1])
