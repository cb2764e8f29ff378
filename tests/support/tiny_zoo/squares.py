"""Members of the zoo whose images have one size, the same for all images of the model."""

from __future__ import annotations

from tiny_family import HIDDEN
from torch import nn

from tiny_zoo.builder import builder
from tiny_zoo.configs import tiny_config
from tiny_zoo.towers import CLIP, CONVNEXT, SAM, SIGLIP, squares
from tiny_zoo.zoo_model import ZooModel

_SLIDING = {"sliding_window": 8}


def _shieldgemma2() -> nn.Module:
    from transformers import ShieldGemma2Config, ShieldGemma2ForImageClassification

    changes = {"vision_config": SIGLIP, "text_config": _SLIDING, "mm_tokens_per_image": 4}
    config = tiny_config(ShieldGemma2Config, **changes, yes_token_index=5, no_token_index=6)
    return ShieldGemma2ForImageClassification(config)


_MEDIA = squares(16)

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
    ZooModel("got_ocr2", builder("GotOcr2", vision_config=SAM), squares(32)),
    ZooModel(
        "pp_chart2table",
        builder("GotOcr2", "PPChart2Table", vision_config=SAM),
        squares(32),
    ),
    # The projector reads the layers -2, -5, -8, -11 and 6 of the tower.
    ZooModel("vipllava", builder("VipLlava", vision_config={**CLIP, "num_hidden_layers": 11}), _MEDIA),
    ZooModel(
        "qianfan_ocr",
        builder("QianfanOCR", vision_config={**SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]}),
        _MEDIA,
    ),
    ZooModel(
        "fast_vlm",
        builder("FastVlm", vision_config=CONVNEXT),
        squares(64),
        note="a ConvNeXt stands in for the tower of timm",
    ),
    ZooModel(
        "shieldgemma2",
        _shieldgemma2,
        _MEDIA,
        owner="model.model",
        options=None,
        note="it has no generate: the logits are equal",
    ),
]
