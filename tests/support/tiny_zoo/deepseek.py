"""Members of the zoo of the DeepSeek-VL family."""

from __future__ import annotations

from tiny_family import Call, random_tensor

from tiny_zoo.builder import builder
from tiny_zoo.squares import SIGLIP, picture
from tiny_zoo.zoo_model import Medium, ZooModel

_SAM = {
    "image_size": 32,
    "hidden_size": 24,
    "mlp_dim": 32,
    "output_channels": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
}


def _in_two_resolutions(seed: int) -> Call:
    return {**picture(seed), "high_res_pixel_values": random_tensor(seed + 100, 1, 3, 32, 32)}


DEEPSEEK = [
    ZooModel("deepseek_vl", builder("DeepseekVL", vision_config=SIGLIP), {"image": Medium(picture)}),
    ZooModel(
        "deepseek_vl_hybrid",
        builder("DeepseekVLHybrid", vision_config=SIGLIP, high_res_vision_config=_SAM),
        {"image": Medium(_in_two_resolutions)},
    ),
]
