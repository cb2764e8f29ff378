"""Members of the zoo whose images are padded to the largest image of the call: Pixtral towers."""

from __future__ import annotations

import torch
from tiny_family import Call, one_of, random_tensor
from torch import nn

from tiny_zoo.builder import builder
from tiny_zoo.towers import PIXTRAL
from tiny_zoo.zoo_model import Medium, ZooModel


def _picture(seed: int) -> Call:
    size = one_of(seed, (16, 16), (16, 24), (24, 16))
    return {"pixel_values": random_tensor(seed, 1, 3, *size), "image_sizes": torch.tensor([size])}


def _join(calls: list[Call]) -> Call:
    sizes = torch.cat([call["image_sizes"] for call in calls])
    most_rows, most_columns = sizes.amax(0).tolist()
    padded = [
        nn.functional.pad(call["pixel_values"], (0, most_columns - width, 0, most_rows - height))
        for call, (height, width) in zip(calls, sizes.tolist(), strict=True)
    ]
    return {"pixel_values": torch.cat(padded), "image_sizes": sizes}


# None: the class computes one value per layer.
_LARGE4 = {
    "kv_source_layers": None,
    "indexer_types": None,
    "num_key_value_heads": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 64,
}

_MEDIA = {"image": Medium(_picture, _join)}

CROPS = [
    ZooModel(
        "llava_pixtral",
        builder(
            "Llava", vision_config=PIXTRAL, vision_feature_layer=-1, vision_feature_select_strategy="full"
        ),
        _MEDIA,
    ),
    ZooModel("mistral3", builder("Mistral3", vision_config=PIXTRAL), _MEDIA),
    ZooModel("lighton_ocr", builder("LightOnOcr", vision_config=PIXTRAL), _MEDIA),
    ZooModel(
        "mistral_large4",
        builder("MistralLarge4", vision_config=PIXTRAL, text_config=_LARGE4),
        _MEDIA,
    ),
]
