"""Gemma 4: patches with positions, padded to a fixed number; videos are frames of such patches."""

from __future__ import annotations

from math import prod

import torch
from tiny_family import IMAGE, VIDEO, Call, one_of, random_tensor
from torch import Tensor, nn

from tiny_zoo.configs import AUDIO, tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

POOL, PATCHES, VALUES = 3, 36, 3 * 4 * 4
GRIDS = (6, 6), (3, 6), (6, 3)
MELS = 16
TEXT = {"sliding_window": 8, "vocab_size_per_layer_input": 128, "hidden_size_per_layer_input": 8}
VISION = {"hidden_size": 24, "head_dim": 12, "num_key_value_heads": 2, "position_embedding_size": 64}
SOUND = {"hidden_size": 24, "subsampling_conv_channels": [8, 4], "output_proj_dims": 24}
SOUND |= {"attention_chunk_size": 4, "attention_context_left": 5}


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


def token_types(input_ids: Tensor) -> Call:
    return {"mm_token_type_ids": (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()}


def build() -> nn.Module:
    import transformers

    config = transformers.Gemma4Config(
        text_config=tiny_config(transformers.Gemma4TextConfig, **TEXT),
        vision_config=tiny_config(transformers.Gemma4VisionConfig, **VISION),
        audio_config=tiny_config(transformers.Gemma4AudioConfig, **SOUND),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
    )
    return transformers.Gemma4ForConditionalGeneration(config)


MEDIA = {"image": Medium(picture), "video": Medium(clip, token=VIDEO)}
GEMMA4 = [ZooModel("gemma4", build, MEDIA, token_types=token_types)]
