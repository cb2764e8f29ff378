"""Members of the zoo that hear and do not see. Their splits follow from the signatures of their methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_family import HIDDEN, Call, random_tensor
from torch import Tensor

from tiny_zoo.builder import builder
from tiny_zoo.configs import AUDIO
from tiny_zoo.zoo_model import Medium, ZooModel

MELS, FRAMES = 8, 48
_PADDED = "padding is part of a clip: padded to another length, it is encoded again"
_WINDOWS = "an entry is a window of 30 seconds"

_TOWER = {"num_mel_bins": MELS, "max_source_positions": FRAMES // 2, "intermediate_size": 4 * HIDDEN}
_QWEN = {"num_mel_bins": MELS, "d_model": HIDDEN, "output_dim": HIDDEN, "downsample_hidden_size": 8}
_QWEN |= {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
_CONFORMER = {"input_dim": MELS, "num_layers": 2, "hidden_dim": 16, "num_heads": 2, "output_dim": 4}
_CONFORMER |= {"context_size": 8, "max_pos_emb": 16}
_FRAMES_PER_ROW = 3


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


def _valid_rows(call: Call) -> Tensor:
    frames = int(call["input_features"].any(-1).sum())
    return torch.arange(FRAMES // _FRAMES_PER_ROW)[None] < -(-frames // _FRAMES_PER_ROW)


def _granite_speech(name: str, prefix: str) -> ZooModel:
    """A model that encodes padding, too. Its `forward` leaves the rows of the padding out."""
    build = builder(
        prefix,
        encoder_config=_CONFORMER,
        projector_config={"encoder_hidden_size": 16, "cross_attention_frequency": 1},
        has_lora_adapter=False,
        downsample_rate=_FRAMES_PER_ROW,
        window_size=2 * _FRAMES_PER_ROW,
    )
    media = _media(
        _unmasked(_frames),
        layout=lambda call, length: [AUDIO] * int(_valid_rows(call).sum()),
        extras=lambda calls: {"input_features_mask": torch.cat([_valid_rows(call) for call in calls])},
    )
    return ZooModel(name, build, media, note=_PADDED)


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
    _granite_speech("granite_speech", "GraniteSpeech"),
    _granite_speech("granite_speech_plus", "GraniteSpeechPlus"),
]
