"""Members of the zoo whose encoder reads the images, and whose decoder writes the text."""

from __future__ import annotations

from tiny_family import HEADS, HIDDEN, IMAGE, PADS, TEXT

from tiny_zoo.builder import builder
from tiny_zoo.towers import SIGLIP, squares
from tiny_zoo.zoo_model import ZooModel

_DAVIT = {
    "depths": [1, 1, 1, 1],
    "embed_dim": [8, 8, 16, 16],
    "num_heads": [1, 1, 2, 2],
    "num_groups": [1, 1, 2, 2],
    "window_size": 4,
    "patch_size": [7, 3, 3, 3],
    "projection_dim": HIDDEN,
}
_BART = {
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_DECODER = {**TEXT, **HEADS, **PADS, "sliding_window": 8}
_T5GEMMA2 = {
    "text_config": _DECODER,
    "vision_config": SIGLIP,
    "mm_tokens_per_image": 4,
    "image_token_index": IMAGE,
}

ENCODER_DECODERS = [
    ZooModel(
        "florence2",
        builder("Florence2", vision_config=_DAVIT, text_config=_BART),
        squares(64),
    ),
    ZooModel(
        "t5gemma2",
        builder("T5Gemma2", encoder=_T5GEMMA2, decoder=_DECODER, image_token_index=IMAGE),
        squares(16),
        owner="model.encoder",
        token_types=lambda input_ids: {"decoder_input_ids": input_ids[:, :2]},
    ),
]
