"""Gemma 4: patches with positions, padded to a fixed number; videos are frames of such patches."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from tiny_family import IMAGE, VIDEO, Call, one_of, random_tensor
from torch import Tensor, nn
from torch.nn.functional import pad

from tiny_zoo.configs import AUDIO, tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

PATCHES, VALUES = 36, 3 * 4 * 4
GRIDS = (6, 6), (3, 6), (6, 3)
MELS = 8
CANVAS = 4
TEXT = {"sliding_window": 8, "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8}
VISION = {"hidden_size": 24, "head_dim": 12, "num_key_value_heads": 2, "position_embedding_size": 64}
SOUND = {"hidden_size": 24, "subsampling_conv_channels": [8, 4], "output_proj_dims": 24}
SOUND |= {"attention_chunk_size": 4, "attention_context_left": 5}
UNIFIED_VISION = {"pooling_kernel_size": 1, "mm_embed_dim": 24, "mm_posemb_size": 64, "output_proj_dims": 24}
UNIFIED_SOUND = {"audio_embed_dim": MELS}


def picture(seed: int) -> Call:
    pixels, positions = frames(seed, 1)
    return {"pixel_values": pixels, "image_position_ids": positions}


def clip(seed: int) -> Call:
    """One video, in the form of the installed transformers."""
    from transformers.models.gemma4.modeling_gemma4 import Gemma4Model

    pixels, positions = frames(1000 + seed, count := 2 + seed % 2)
    if "num_frames_per_video" not in Gemma4Model.get_video_features.__annotations__:
        return {"pixel_values_videos": pixels[None, :2], "video_position_ids": positions[None, :2]}
    counts = {"num_frames_per_video": torch.tensor([count])}
    return {"pixel_values_videos": pixels, "video_position_ids": positions, **counts}


def frames(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` frames of one size, and the positions of their patches. -1 is the position of padding."""
    rows, columns = grid = one_of(seed, *GRIDS)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    pixels, positions = torch.zeros(count, PATCHES, VALUES), torch.full((count, PATCHES, 2), -1)
    pixels[:, : prod(grid)] = random_tensor(seed, count, prod(grid), VALUES)
    positions[:, : prod(grid)] = torch.stack([x, y], -1).flatten(0, 1)
    return pixels, positions


def sound(seed: int) -> Call:
    length = (20, 9, 14)[seed % 3]
    mask = torch.ones(1, length, dtype=torch.bool)
    return {"input_features": random_tensor(2000 + seed, 1, length, MELS), "input_features_mask": mask}


def pad_to_longest(calls: list[Call]) -> Call:
    longest = max(call["input_features"].shape[1] for call in calls)
    edges = {"input_features": (0, 0), "input_features_mask": ()}
    return {
        name: torch.cat([pad(call[name], (*edge, 0, longest - call[name].shape[1])) for call in calls])
        for name, edge in edges.items()
    }


def joined_sounds(outputs: list[Any]) -> Any:
    """One output with the valid rows of all outputs, as one clip."""
    first = outputs[0]
    rows = torch.cat([output.pooler_output[output.attention_mask] for output in outputs])
    first.pooler_output, first.attention_mask = rows[None], torch.ones(1, len(rows), dtype=torch.bool)
    return first


def token_types(input_ids: Tensor) -> Call:
    return {"mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()}


def builder(prefix: str, vision: Call, audio: Call) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        def part(name: str, **changes: Any) -> Any:
            return tiny_config(getattr(transformers, f"{prefix}{name}Config"), **changes)

        tokens = {"image_token_id": IMAGE, "video_token_id": VIDEO, "audio_token_id": AUDIO}
        config = getattr(transformers, f"{prefix}Config")(
            text_config=part("Text", **TEXT),
            vision_config=part("Vision", **vision),
            audio_config=part("Audio", **audio),
            **tokens,
        )
        return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)

    return build


def canvas(input_ids: Tensor) -> Call:
    """The tokens that a diffusion model denoises."""
    return token_types(input_ids) | {"decoder_input_ids": torch.arange(CANVAS)[None] + 50}


def diffusion() -> nn.Module:
    import transformers

    config = transformers.DiffusionGemmaConfig(
        text_config=tiny_config(transformers.DiffusionGemmaTextConfig, sliding_window=8, top_k_experts=2),
        vision_config=tiny_config(transformers.Gemma4VisionConfig, **VISION),
        image_token_id=IMAGE,
        canvas_length=CANVAS,
    )
    model = transformers.DiffusionGemmaForBlockDiffusion(config)
    model.generation_config.max_denoising_steps = 2
    return model


MEDIA = {
    "image": Medium(picture),
    "video": Medium(clip, token=VIDEO),
    "audio": Medium(sound, pad_to_longest, token=AUDIO, joined=joined_sounds),
}
GEMMA4 = [
    ZooModel("gemma4", builder("Gemma4", VISION, SOUND), MEDIA, token_types=token_types),
    ZooModel(
        "gemma4_unified",
        builder("Gemma4Unified", UNIFIED_VISION, UNIFIED_SOUND),
        MEDIA,
        token_types=token_types,
    ),
    ZooModel(
        "diffusion_gemma",
        diffusion,
        {"image": MEDIA["image"]},
        owner="model.encoder",
        token_types=canvas,
    ),
]
