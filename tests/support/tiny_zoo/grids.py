"""GLM and other families whose images and videos are patches with a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from tiny_family import HIDDEN
from tiny_grids import ROPE, grid_token_types
from torch import nn

from tiny_zoo.configs import EXPERTS, tiny_config
from tiny_zoo.grid_media import IMAGES, STILL, WHOLE, frame_videos, glm_videos, grid_images, grid_videos
from tiny_zoo.zoo_model import Medium, ZooModel

GLM_VISION = {"hidden_size": HIDDEN, "image_size": 16}
EVEN_CLIPS = (2, 4, 4), (4, 2, 4), (2, 4, 6)
GLM = {"image": grid_images(WHOLE), "video": glm_videos(WHOLE)}


def _build(prefix: str, **changes: Any) -> Callable[[], nn.Module]:
    """Return a function that makes a model of the classes of transformers with this prefix."""

    def build() -> nn.Module:
        config = tiny_config(getattr(transformers, f"{prefix}Config"), **changes)
        return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)

    return build


def _zoo_model(
    name: str, build: Callable[[], nn.Module], media: dict[str, Medium], **options: Any
) -> ZooModel:
    return ZooModel(name, build, media, token_types=grid_token_types, **options)


GRIDS: list[ZooModel] = [
    _zoo_model(
        "glm46v", _build("Glm46V", vision_config=GLM_VISION, text_config={"rope_parameters": ROPE}), GLM
    ),
    _zoo_model(
        "glm4v_moe",
        _build(
            "Glm4vMoe",
            vision_config=GLM_VISION,
            text_config={"rope_parameters": ROPE | {"mrope_section": [1, 2, 1]}, "head_dim": 16},
        ),
        GLM,
    ),
    _zoo_model(
        "glm_ocr", _build("GlmOcr", vision_config=GLM_VISION, text_config={"rope_parameters": ROPE}), GLM
    ),
    ZooModel(
        "kimi_k25",
        _build(
            "Kimi_K25",
            text_config={
                "kv_lora_rank": 16,
                "q_lora_rank": 16,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "qk_head_dim": 16,
            },
            vision_config={"pos_emb_height": 8, "pos_emb_width": 8},
            projection_hidden_size=HIDDEN,
        ),
        # In 5.23 the stock method has the wrong row counts for a chunk of several frames, and raises.
        {"image": grid_images(*STILL), "video": grid_videos(*STILL, grids=IMAGES)},
    ),
    _zoo_model(
        "paddleocr_vl",
        _build("PaddleOCRVL", vision_config=GLM_VISION, text_config={"rope_parameters": ROPE}),
        {"image": grid_images(*STILL)},
    ),
    _zoo_model(
        "ernie4_5_vl_moe",
        _build(
            "Ernie4_5_VLMoe",
            vision_config={"hidden_size": HIDDEN},
            text_config={
                "rope_parameters": ROPE | {"mrope_section": [3, 3, 2]},
                "moe_intermediate_size": [16, 16],
                "moe_num_experts": EXPERTS,
                "moe_k": 2,
            },
        ),
        {"image": grid_images(48), "video": grid_videos(48, grids=EVEN_CLIPS)},
    ),
]
