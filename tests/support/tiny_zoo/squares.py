"""Members of the zoo whose images have one size, the same for all images of the model."""

from __future__ import annotations

from tiny_family import HIDDEN, Call, random_tensor
from torch import nn

from tiny_zoo.builder import builder
from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

SIGLIP = {"image_size": 16, "patch_size": 4, "hidden_size": 24, "intermediate_size": 32}
CLIP = {**SIGLIP, "num_hidden_layers": 3}
_SLIDING = {"sliding_window": 8}


def picture(seed: int) -> Call:
    return {"pixel_values": random_tensor(seed, 1, 3, 16, 16)}


# A tower of convolutions. The real one needs the package timm.
_CONVNEXT = {
    "model_type": "convnext",
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_stages": 4,
    "patch_size": 4,
    "hidden_size": 16,
}
# GOT-OCR's tower is that of SAM: its convolutions make one row of 16 patches.
_SAM = {
    "image_size": 32,
    "hidden_size": 24,
    "mlp_dim": 32,
    "output_channels": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
}


def _sam_picture(seed: int) -> Call:
    return {"pixel_values": random_tensor(seed, 1, 3, 32, 32)}


def large_picture(seed: int) -> Call:
    return {"pixel_values": random_tensor(seed, 1, 3, 64, 64)}


def _shieldgemma2() -> nn.Module:
    from transformers import ShieldGemma2Config, ShieldGemma2ForImageClassification

    changes = {"vision_config": SIGLIP, "text_config": _SLIDING, "mm_tokens_per_image": 4}
    config = tiny_config(ShieldGemma2Config, **changes, yes_token_index=5, no_token_index=6)
    return ShieldGemma2ForImageClassification(config)


_MEDIA = {"image": Medium(picture)}

SQUARES = [
    ZooModel("llava", builder("Llava", vision_config=CLIP), _MEDIA),
    ZooModel(
        "paligemma",
        builder("PaliGemma", vision_config={**SIGLIP, "projection_dim": HIDDEN}, projection_dim=HIDDEN),
        _MEDIA,
    ),
    ZooModel("cohere2_vision", builder("Cohere2Vision", vision_config=SIGLIP, text_config=_SLIDING), _MEDIA),
    ZooModel("aya_vision", builder("AyaVision", vision_config=SIGLIP, text_config=_SLIDING), _MEDIA),
    ZooModel(
        "janus",
        builder(
            "Janus",
            vision_config={**SIGLIP, "projection_dim": HIDDEN, "mlp_ratio": 2},
            vq_config={
                "embed_dim": 8,
                "num_embeddings": 16,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "latent_channels": 8,
            },
        ),
        _MEDIA,
    ),
    ZooModel("got_ocr2", builder("GotOcr2", vision_config=_SAM), {"image": Medium(_sam_picture)}),
    ZooModel(
        "pp_chart2table",
        builder("GotOcr2", "PPChart2Table", vision_config=_SAM),
        {"image": Medium(_sam_picture)},
    ),
    # The projector reads the layers -2, -5, -8, -11 and 6 of the tower.
    ZooModel("vipllava", builder("VipLlava", vision_config={**CLIP, "num_hidden_layers": 11}), _MEDIA),
    ZooModel(
        "qianfan_ocr",
        builder("QianfanOCR", vision_config={**SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]}),
        _MEDIA,
    ),
    ZooModel("fast_vlm", builder("FastVlm", vision_config=_CONVNEXT), {"image": Medium(large_picture)}),
    ZooModel("shieldgemma2", _shieldgemma2, _MEDIA, owner="model.model", generates=False),
]
