"""The thinkers of the Omni models: images, videos and audio clips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tiny_family import END, HIDDEN, START, Call, one_of, random_tensor
from tiny_grids import DEEPSTACK, INTERLEAVED, QWEN2_5_VISION, ROPE
from torch import Tensor
from torch.nn.functional import pad

from tiny_zoo.configs import AUDIO, LATENT
from tiny_zoo.grid_media import WHOLE, frame_videos, grid_images, grid_videos
from tiny_zoo.grid_model import grid_model
from tiny_zoo.zoo_model import Medium, ZooModel

AUDIO_START, AUDIO_END = 96, 97
MELS = 8
TOKENS = {"vision_start_token_id": START, "vision_end_token_id": END}
TOKENS |= {"audio_start_token_id": AUDIO_START, "audio_end_token_id": AUDIO_END}


def _clip(seed: int) -> Call:
    """A clip with two frames of padding."""
    [frames] = one_of(seed, (60,), (130,), (45,))
    sound = random_tensor(2000 + seed, 1, MELS, frames)
    mask = torch.ones(1, frames, dtype=torch.long)
    return {"input_features": pad(sound, (0, 2)), "feature_attention_mask": pad(mask, (0, 2))}


def padded_clips(calls: list[Call]) -> Call:
    """Clips, padded with zeros to the longest of them."""
    joined = {}
    for name in calls[0]:
        tensors = [call[name] for call in calls]
        shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
        joined[name] = torch.cat([_grown(tensor, shape) for tensor in tensors])
    return joined


def _grown(tensor: Tensor, shape: list[int]) -> Tensor:
    grown = tensor.new_zeros(shape)
    grown[tuple(map(slice, tensor.shape))] = tensor
    return grown


def _joined(outputs: list[Any]) -> Any:
    """One output for all clips: `forward` reads the last hidden state."""
    first = outputs[0]
    first.last_hidden_state = torch.cat([output.last_hidden_state for output in outputs])
    return first


def _tokens(length: int) -> list[int]:
    return [AUDIO_START, *[AUDIO] * length, AUDIO_END]


def _seconds(calls: list[Call]) -> Call:
    return {"video_second_per_grid": torch.tensor([1.0 + number for number in range(len(calls))])}


def _waves(seed: int) -> Call:
    """Samples, padded to whole tokens of 8 samples."""
    [length] = one_of(seed, (30,), (56,), (17,))
    sound, mask = random_tensor(2000 + seed, 1, length), torch.ones(1, length, dtype=torch.int32)
    padding = 0, -length % 8
    return {"input_values": pad(sound, padding), "input_values_mask": pad(mask, padding)}


def _chunks(seed: int) -> Call:
    """The frames of one chunk: 8 frames of 2 samples for each token."""
    [samples] = one_of(seed, (60,), (100,), (33,))
    frames = 8 * -(-samples // 16)
    return {
        "input_features": random_tensor(2000 + seed, 1, MELS, frames),
        "chunk_sample_lengths": torch.tensor([samples]),
    }


VIDEOS = replace(grid_videos(WHOLE), extras=_seconds)
AUDIO_CLIPS = Medium(_clip, padded_clips, AUDIO, _tokens, joined=_joined)
TOWER = {"d_model": HIDDEN, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
TOWER |= {"output_dim": HIDDEN, "num_mel_bins": MELS, "max_source_positions": 128}

OMNI: list[ZooModel] = [
    grid_model(
        "qwen2_5_omni_thinker",
        "Qwen2_5OmniThinker",
        {
            "image": grid_images(WHOLE),
            "video": VIDEOS,
            "audio": AUDIO_CLIPS,
        },
        has_types=False,
        vision_config=QWEN2_5_VISION | {"embed_dim": 24},
        audio_config=TOWER,
        text_config={"rope_parameters": ROPE},
        **TOKENS,
    ),
    grid_model(
        "qwen3_omni_moe_thinker",
        "Qwen3OmniMoeThinker",
        {
            "image": grid_images(WHOLE),
            "video": VIDEOS,
            "audio": AUDIO_CLIPS,
        },
        row_width=3 * HIDDEN,
        has_types=False,
        vision_config=DEEPSTACK,
        audio_config=TOWER | {"n_window_infer": 100, "downsample_hidden_size": 8},
        text_config={"rope_parameters": INTERLEAVED},
        **TOKENS,
    ),
    grid_model(
        "muse_spark",
        "MuseSpark",
        {
            "image": grid_images(WHOLE),
            "video": frame_videos(WHOLE),
            "audio": Medium(_waves, padded_clips, AUDIO, _tokens),
        },
        has_types=False,
        out_hidden_size=4 * HIDDEN,
        projector_hidden_size=48,
        vision_config={"pos_emb_height": 2, "pos_emb_width": 2},
        audio_config={
            "patch_sizes": [4, 2],
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "conv_kernel_size": 3,
            "num_hidden_layers": 2,
        },
        text_config={"sliding_window": 16, "moe_hidden_size": 16},
    ),
    grid_model(
        "dots3_note",
        "Dots3Note",
        {
            "image": grid_images(48),
            "video": frame_videos(48),
            "audio": Medium(_chunks, padded_clips, AUDIO, _tokens),
        },
        has_types=False,
        note="an entry is a chunk of a clip",
        vision_config={
            "adapter_in_dim": HIDDEN,
            "adapter_out_dim": HIDDEN,
            "mlp_layer_types": ["dense", "sparse"],
        },
        audio_config={
            "feature_size": MELS,
            "hop_length": 2,
            "downsample_hidden_size": 8,
            "samples_per_token": 16,
            "conv_output_size": 8,
            "adapter_input_size": HIDDEN,
            "adapter_out_dim": HIDDEN,
        },
        text_config={
            **LATENT,
            "num_key_value_heads": 2,
            "index_topk": 16,
            "index_head_dim": 16,
            "index_n_heads": 2,
            "sliding_window": 16,
            "shared_experts_intermediate_size": 16,
        },
    ),
]
