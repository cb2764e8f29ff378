"""default_row_width: hidden size times the vectors that the encoder packs in a row, by model."""

from __future__ import annotations

from types import SimpleNamespace as Namespace
from typing import Any

import pytest

from vitcache.adapters.vllm.row_width import default_row_width, num_packed

VISION = Namespace(deepstack_visual_indexes=[8, 16, 24])


@pytest.mark.parametrize(
    ("hf_config", "packed"),
    [
        (Namespace(), 1),
        (Namespace(vision_config=Namespace()), 1),
        (Namespace(vision_config=None), 1),
        (Namespace(vision_config=VISION), 4),
        (Namespace(vision_config=Namespace(deepstack_visual_indexes=())), 1),
        (Namespace(vision_config=Namespace(deepstack_visual_indexes=None)), 1),
        (Namespace(thinker_config=Namespace(vision_config=VISION, audio_config=Namespace())), 4),
        (Namespace(model_type="bailing_moe_v3_vl", vision_config=VISION), 1),
        (
            Namespace(
                model_type="granite4_vision",
                deepstack_layer_map=[[-19, 9], [-13, 6], [-7, 3], [-1, 0]],
                spatial_target_layers=[12, 15, 18, 21],
            ),
            8,
        ),
        (Namespace(audio_config={"deepstack_encoder_layer_indexes": [3, 6, 9]}), 4),
        (
            Namespace(
                audio_config=Namespace(deepstack_encoder_layer_indexes=[3, 6, 9]),
                deepstack_num_inject_layers=2,
            ),
            3,
        ),
    ],
)
def test_num_packed_counts_deepstack_levels(hf_config: Any, packed: int) -> None:
    assert num_packed(hf_config) == packed


def test_default_row_width_reads_the_width_of_inputs_embeds() -> None:
    text = Namespace(hidden_size=64)
    assert default_row_width(Namespace(hf_text_config=text, hf_config=Namespace())) == 64
    projected = Namespace(
        hf_text_config=text,
        hf_config=Namespace(vision_config=VISION),
        get_inputs_embeds_size=lambda: 32,
    )
    assert default_row_width(projected) == 128


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("Qwen2_5_VLConfig", 1),
        ("Qwen3VLConfig", 4),
        ("Qwen3VLMoeConfig", 4),
        ("Qwen3_5Config", 1),
        ("Qwen3OmniMoeConfig", 4),
        ("Gemma3Config", 1),
        ("InternVLConfig", 1),
        ("Glm4vConfig", 1),
    ],
)
@pytest.mark.transformers
def test_num_packed_reads_the_configurations_of_transformers(name: str, packed: int) -> None:
    transformers = pytest.importorskip("transformers")
    assert num_packed(getattr(transformers, name)()) == packed
