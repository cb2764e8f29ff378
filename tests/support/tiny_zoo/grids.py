"""Families whose images and videos are patches with a grid."""

from __future__ import annotations

from tiny_family import HIDDEN
from tiny_grids import ROPE

from tiny_zoo.configs import EXPERTS, LATENT
from tiny_zoo.grid_media import IMAGES, STILL, grid_images, grid_videos
from tiny_zoo.grid_model import GLM_VISION, grid_model
from tiny_zoo.zoo_model import ZooModel

EVEN_CLIPS = (2, 4, 4), (4, 2, 4), (2, 4, 6)

GRIDS: list[ZooModel] = [
    grid_model(
        "kimi_k25",
        "Kimi_K25",
        {"image": grid_images(*STILL), "video": grid_videos(*STILL, grids=IMAGES)},
        has_types=False,
        note="videos of one frame: for more frames, the stock method raises",
        text_config={
            **LATENT,
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
    grid_model(
        "paddleocr_vl",
        "PaddleOCRVL",
        {"image": grid_images(*STILL)},
        vision_config=GLM_VISION,
        text_config={"rope_parameters": ROPE},
    ),
    grid_model(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoe",
        # The rows of two frames are one row.
        {"image": grid_images(48), "video": grid_videos(48, grids=EVEN_CLIPS)},
        vision_config={"hidden_size": HIDDEN},
        text_config={
            "rope_parameters": ROPE | {"mrope_section": [3, 3, 2]},
            "moe_intermediate_size": [16, 16],
            "moe_num_experts": EXPERTS,
            "moe_k": 2,
        },
    ),
]
