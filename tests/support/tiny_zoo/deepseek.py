"""Members of the zoo of the DeepSeek-VL family."""

from __future__ import annotations

from tiny_family import Call

from tiny_zoo.builder import builder
from tiny_zoo.towers import SAM, SIGLIP, square, squares
from tiny_zoo.zoo_model import Medium, ZooModel


def _in_two_resolutions(seed: int) -> Call:
    return {**square(seed), "high_res_pixel_values": square(seed + 100, 32)["pixel_values"]}


DEEPSEEK = [
    ZooModel("deepseek_vl", builder("DeepseekVL", vision_config=SIGLIP), squares(16)),
    ZooModel(
        "deepseek_vl_hybrid",
        builder("DeepseekVLHybrid", vision_config=SIGLIP, high_res_vision_config=SAM),
        {"image": Medium(_in_two_resolutions)},
    ),
]
