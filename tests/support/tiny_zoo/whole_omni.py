"""The whole Omni models. They have no `forward`: `generate` calls the thinker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.omni import OMNI
from tiny_zoo.zoo_model import ZooModel

_THINKERS = {model.name: model for model in OMNI}
_OPTIONS = {"thinker_max_new_tokens": 3, "thinker_do_sample": False}


def _qwen2_5_omni() -> nn.Module:
    """Its `generate` reads the talker even if it generates text; the part that makes waves is left out."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
        Qwen2_5OmniTalkerForConditionalGeneration,
    )

    thinker = _THINKERS["qwen2_5_omni_thinker"].build().config.to_dict()
    config = tiny_config(Qwen2_5OmniConfig, thinker_config=thinker, enable_audio_output=False)
    model = Qwen2_5OmniForConditionalGeneration(config)
    model.talker = Qwen2_5OmniTalkerForConditionalGeneration(config.talker_config)
    model.speaker_map["Chelsie"] = {}
    return model


def _qwen3_omni_moe() -> nn.Module:
    from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration

    thinker = _THINKERS["qwen3_omni_moe_thinker"].build().config.to_dict()
    config = Qwen3OmniMoeConfig(thinker_config=thinker, enable_audio_output=False)
    return Qwen3OmniMoeForConditionalGeneration(config)


def _whole(name: str, build: Callable[[], nn.Module], **options: Any) -> ZooModel:
    thinker = _THINKERS[f"{name}_thinker"]
    return replace(
        thinker,
        name=name,
        build=build,
        owner=f"thinker.{thinker.owner}",
        head="thinker",
        options=_OPTIONS | options,
        note="attached through its thinker, whose logits and tokens are compared",
    )


WHOLE_OMNI = [
    _whole("qwen2_5_omni", _qwen2_5_omni, generation_mode="text"),
    _whole("qwen3_omni_moe", _qwen3_omni_moe, return_audio=False),
]
