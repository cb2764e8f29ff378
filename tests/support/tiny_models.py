"""Vision-language models with a few thousand random weights, and the arguments of their calls.

A picture is the output that the family's processor would return for one image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

IMAGE, VIDEO, START, END = 90, 91, 92, 93
HIDDEN = 32
TEXT = {"vocab_size": 96, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 3}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
SIGLIP = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PADS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}

Call = dict[str, Any]


@dataclass(frozen=True)
class TinyFamily:
    """One model family.

    `picture(seed)` returns the arguments of `get_image_features` for one image. `join` makes one call of
    several pictures, as the processor does for a prompt with several images. `part` splits a call into its
    pictures.
    """

    name: str
    build: Callable[[], nn.Module]
    picture: Callable[[int], Call]
    join: Callable[[list[Call]], Call]
    part: Callable[[Call], list[Call]]
    tower: str
    row_width: int = HIDDEN
    token_types: Callable[[Tensor], Call] = field(default=lambda input_ids: {})

    def model(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = self.build().to(dtype).eval()
        # With the small initial weights, images do not change the logits. Gemma 3's initial projector is 0.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.5 if "embed" in name else parameter.shape[-1] ** -0.5)
        return model

    def pictures(self, *seeds: int) -> list[Call]:
        return [self.picture(seed) for seed in seeds]

    def call(self, *seeds: int) -> Call:
        """The arguments of `get_image_features` for these pictures."""
        return self.join(self.pictures(*seeds))

    def prompt(self, model: nn.Module, *seeds: int) -> Call:
        """The arguments of `forward` and `generate` for a chat with these pictures."""
        with torch.no_grad():
            outputs = [stock_method(model, "image")(**picture) for picture in self.pictures(*seeds)]
        return self.chat([_num_rows(output) for output in outputs], IMAGE) | self.call(*seeds)

    def chat(self, lengths: list[int], token: int) -> Call:
        """A chat with `lengths[i]` placeholder tokens for item i."""
        ids = [1]
        for i, length in enumerate(lengths):
            ids += [2 + i, START, *[token] * length, END, 40, 41]
        input_ids = torch.tensor([[*ids, 42]])
        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            **self.token_types(input_ids),
        }


# Modules whose docstring examples use `model` and `inputs` without defining them.
MODULES_WITH_MODEL_EXAMPLES = (
    "vitcache.adapters.chunked_prefill",
    "vitcache.adapters.model_pipeline",
    "vitcache.adapters.transformers",
)


def names_of_examples(module: str) -> dict[str, Any]:
    """Return the names that the docstring examples of a module use without making them.

    Modules about transformers use a Qwen2.5-VL, and its inputs for a prompt with one image. If transformers
    is not installed, the test is skipped.
    """
    if module not in MODULES_WITH_MODEL_EXAMPLES:
        return {}
    pytest.importorskip("transformers")
    family = FAMILIES["qwen2_5_vl"]
    model = family.model()
    return {"model": model, "inputs": family.prompt(model, 0)}


def stock_method(model: nn.Module, modality: str) -> Callable[..., Any]:
    """The method that the class defines, even if the object has an attribute of that name."""
    return getattr(type(model.base_model), f"get_{modality}_features").__get__(model.base_model)


def _num_rows(output: Any) -> int:
    return sum(len(item) for item in output.pooler_output)


def one_at_a_time(family: TinyFamily, model: nn.Module) -> nn.Module:
    """Make the stock model encode one image per call of its own method."""
    base = model.base_model
    stock = base.get_image_features
    names = list(family.picture(0))

    @functools.wraps(stock)
    def encode_each(*args: Any, **kwargs: Any) -> Any:
        call = dict(zip(names, args, strict=False)) | kwargs
        return joined_outputs([stock(**part) for part in family.part(call)])

    base.get_image_features = encode_each
    return model


def joined_outputs(outputs: list[Any]) -> Any:
    """One output for all items, in the container types of the outputs for one item."""
    first = outputs[0]
    first.pooler_output = _joined([output.pooler_output for output in outputs])
    if getattr(first, "deepstack_features", None) is not None:
        levels = zip(*(output.deepstack_features for output in outputs), strict=True)
        first.deepstack_features = [_joined(level) for level in levels]
    return first


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return type(parts[0])(item for part in parts for item in part)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _of_one(seed: int, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    return shapes[seed % len(shapes)]


# Qwen: the patches of all images, concatenated, and one grid per image.


def _qwen_picture(seed: int) -> Call:
    grid = _of_one(seed, (1, 4, 4), (1, 4, 6), (1, 2, 4))
    return {"pixel_values": _random(seed, prod(grid), 96), "image_grid_thw": torch.tensor([grid])}


def _cat(calls: list[Call]) -> Call:
    return {name: torch.cat([call[name] for call in calls]) for name in calls[0]}


def _qwen_part(call: Call) -> list[Call]:
    grids = call["image_grid_thw"]
    pixels = call["pixel_values"].split([prod(grid) for grid in grids.tolist()])
    shared = {k: v for k, v in call.items() if k not in ("pixel_values", "image_grid_thw")}
    return [
        {"pixel_values": patches, "image_grid_thw": grid[None], **shared}
        for patches, grid in zip(pixels, grids, strict=True)
    ]


def _qwen_types(input_ids: Tensor) -> Call:
    return {"mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()}


def _qwen2_5() -> nn.Module:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    vision = {"depth": 2, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": HIDDEN, "window_size": 16, "fullatt_block_indexes": [1]}
    text = {**TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rope, **PADS}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_tokens())
    )


def _qwen3() -> nn.Module:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True, "rope_theta": 1e4}
    vision = {"depth": 3, "hidden_size": 24, "intermediate_size": 32, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": HIDDEN, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = {**TEXT, **HEADS, "rope_parameters": rope, **PADS}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **_tokens()))


def _tokens() -> Call:
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


# LLaVA-OneVision: an overview tile and the tiles of the image, padded to the most tiles of the call.


def _llava() -> nn.Module:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config={"model_type": "siglip_vision_model", **SIGLIP, "image_size": 8, "patch_size": 4},
            text_config={
                "model_type": "qwen2",
                **TEXT,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                **PADS,
            },
            image_grid_pinpoints=[[8, 8], [8, 16], [16, 8], [16, 16]],
            image_token_id=IMAGE,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            video_token_id=VIDEO,
        )
    )


LLAVA_TILES = {(8, 8): 2, (8, 14): 3, (15, 9): 5}


def _llava_picture(seed: int) -> Call:
    size = _of_one(seed, *LLAVA_TILES)
    return {"pixel_values": _random(seed, 1, LLAVA_TILES[size], 3, 8, 8), "image_sizes": torch.tensor([size])}


def _llava_join(calls: list[Call]) -> Call:
    most = max(call["pixel_values"].shape[1] for call in calls)
    filled = [
        {
            **call,
            "pixel_values": nn.functional.pad(
                call["pixel_values"], (0,) * 7 + (most - call["pixel_values"].shape[1],)
            ),
        }
        for call in calls
    ]
    return _cat(filled)


def _llava_part(call: Call) -> list[Call]:
    shared = {k: v for k, v in call.items() if k not in ("pixel_values", "image_sizes", "batch_num_images")}
    parts = []
    for pixels, size in zip(call["pixel_values"], call["image_sizes"], strict=True):
        tiles = pixels[None, : LLAVA_TILES[tuple(size.tolist())]]
        parts.append({"pixel_values": tiles, "image_sizes": size[None], **shared})
    return parts


# InternVL and Gemma 3: the first dimension has one image or tile per index.


def _square_picture(seed: int) -> Call:
    return {"pixel_values": _random(seed, 1, 3, 16, 16)}


def _square_part(call: Call) -> list[Call]:
    return [{**call, "pixel_values": image[None]} for image in call["pixel_values"]]


def _internvl() -> nn.Module:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    vision = {**SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]}
    text = {"model_type": "qwen2", **TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, **PADS}
    return InternVLForConditionalGeneration(
        InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    )


def _gemma3() -> nn.Module:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {"model_type": "siglip_vision_model", **SIGLIP, "image_size": 16, "patch_size": 4}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config={**vision, "vision_use_head": False},
            text_config={**TEXT, **HEADS, "sliding_window": 8, **PADS},
            mm_tokens_per_image=4,
            image_token_index=IMAGE,
            image_token_id=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        )
    )


FAMILIES = {
    family.name: family
    for family in (
        TinyFamily("qwen2_5_vl", _qwen2_5, _qwen_picture, _cat, _qwen_part, "visual", HIDDEN, _qwen_types),
        TinyFamily("qwen3_vl", _qwen3, _qwen_picture, _cat, _qwen_part, "visual", 3 * HIDDEN, _qwen_types),
        TinyFamily("llava_onevision", _llava, _llava_picture, _llava_join, _llava_part, "vision_tower"),
        TinyFamily("internvl", _internvl, _square_picture, _cat, _square_part, "vision_tower"),
        TinyFamily(
            "gemma3",
            _gemma3,
            _square_picture,
            _cat,
            _square_part,
            "vision_tower",
            token_types=lambda ids: {"token_type_ids": (ids == IMAGE).int()},
        ),
    )
}
