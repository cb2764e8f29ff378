"""DeepSeek-OCR 2, Step 3.7 and Unlimited OCR: a global view of each image, and local tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tiny_family import IMAGE, Call, random_tensor
from torch import nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

SIDE = 64
TILES = 2, 0, 1
SAM = {"hidden_size": 16, "output_channels": 8, "mlp_dim": 32, "image_size": SIDE, "window_size": 4}
SAM |= {"global_attn_indexes": [1], "downsample_channels": [16, 32]}


def page(seed: int) -> Call:
    tiles = TILES[seed % 3]
    call: Call = {"pixel_values": random_tensor(seed, 1, 3, SIDE, SIDE)}
    call["pixel_values_local"] = random_tensor(1000 + seed, tiles, 3, SIDE, SIDE) if tiles else None
    return call | {"num_local_patches": [tiles]}


def page_with_grid(seed: int) -> Call:
    tiles = TILES[seed % 3]
    return page(seed) | {"patches_grid": [[max(1, tiles), 1]]}


def joined(calls: list[Call]) -> Call:
    def tensors(name: str) -> list[torch.Tensor]:
        return [call[name] for call in calls if call[name] is not None]

    lists = (name for name in calls[0] if not name.startswith("pixel_values"))
    tiles = tensors("pixel_values_local")
    return {
        "pixel_values": torch.cat(tensors("pixel_values")),
        "pixel_values_local": torch.cat(tiles) if tiles else None,
        **{name: [each for call in calls for each in call[name]] for name in lists},
    }


def builder(prefix: str, **changes: Call) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = tiny_config(getattr(transformers, f"{prefix}Config"), image_token_id=IMAGE, **changes)
        return getattr(transformers, f"{prefix}ForConditionalGeneration")(config)

    return build


DEEPSEEK = {"sam_config": SAM, "encoder_config": {"num_key_value_heads": 2}}
TEXT = {"num_key_value_heads": 2, "mlp_layer_types": ["dense", "sparse"]}
SLIDING = TEXT | {"sliding_window": 16}
OCR = [
    ZooModel(
        "deepseek_ocr2",
        builder("DeepseekOcr2", vision_config=DEEPSEEK, text_config=TEXT),
        {"image": Medium(page, joined)},
    ),
    ZooModel(
        "step3p7",
        builder("Step3p7", vision_config={"hidden_size": 8, "image_size": SIDE}, text_config=SLIDING),
        {"image": Medium(page, joined)},
    ),
    ZooModel(
        "unlimited_ocr",
        builder("UnlimitedOcr", vision_config={"sam_config": SAM}, text_config=SLIDING),
        {"image": Medium(page_with_grid, joined)},
    ),
]
