"""Members of the zoo that hear and do not see. Their splits follow from the signatures of their methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_family import HIDDEN, Call, random_tensor

from tiny_zoo.builder import builder
from tiny_zoo.configs import AUDIO
from tiny_zoo.zoo_model import Medium, ZooModel

MELS, FRAMES = 8, 48
_PADDED = "padding is part of a clip: padded to another length, it is encoded again"
_WINDOWS = "an entry is a window of 30 seconds"

_TOWER = {"num_mel_bins": MELS, "max_source_positions": FRAMES // 2, "intermediate_size": 4 * HIDDEN}
_QWEN = {"num_mel_bins": MELS, "d_model": HIDDEN, "output_dim": HIDDEN, "downsample_hidden_size": 8}
_QWEN |= {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}


def _clips(*lengths: int) -> Callable[[int], Call]:
    """Clips of these numbers of frames, padded to the longest one."""
    longest = max(lengths)

    def make(seed: int) -> Call:
        mask = (torch.arange(longest) < lengths[seed % len(lengths)]).long()[None]
        return {"input_features": random_tensor(seed, 1, MELS, longest) * mask, "input_features_mask": mask}

    return make


_clip = _clips(FRAMES, 32, 20)


def _frames(seed: int) -> Call:
    """The same clips with their frames first."""
    call = _clip(seed)
    return call | {"input_features": call["input_features"].mT.contiguous()}


def _unmasked(make: Callable[[int], Call]) -> Callable[[int], Call]:
    """The same clips for a stock method that gets no mask."""
    return lambda seed: {"input_features": make(seed)["input_features"]}


def _media(make: Callable[[int], Call], **options: Any) -> dict[str, Medium]:
    return {"audio": Medium(make, token=AUDIO, **options)}


SPEECH = [
    ZooModel("voxtral", builder("Voxtral", audio_config=_TOWER), _media(_unmasked(_clip)), note=_WINDOWS),
    ZooModel("audioflamingo3", builder("AudioFlamingo3", audio_config=_TOWER), _media(_clip), note=_WINDOWS),
    ZooModel("glmasr", builder("GlmAsr", audio_config=_TOWER), _media(_clip), note=_WINDOWS),
    ZooModel(
        "qwen3_asr",
        builder("Qwen3ASR", audio_config=_QWEN, eos_token_id=127),
        _media(_clips(200, 130, 60)),
        note=_PADDED,
    ),
    ZooModel(
        "fun_asr_nano",
        builder(
            "FunAsrNano",
            audio_config={
                "num_mel_bins": MELS,
                "num_stacked_frames": 1,
                "num_timestamp_prediction_layers": 1,
            },
            adaptor_config={"intermediate_size": HIDDEN // 4},
        ),
        _media(_frames),
        note=_PADDED,
    ),
]
