"""Small sizes of vision towers, and square images for them."""

from __future__ import annotations

from tiny_family import HIDDEN, Call, random_tensor

from tiny_zoo.zoo_model import Medium

SIGLIP = {"image_size": 16, "patch_size": 4, "hidden_size": 24, "intermediate_size": 32}
CLIP = {**SIGLIP, "num_hidden_layers": 3}
PIXTRAL = {"model_type": "pixtral", "image_size": 32, "hidden_size": HIDDEN}
# Convolutions after the layers make one row of 16 patches.
SAM = {
    "image_size": 32,
    "hidden_size": 24,
    "mlp_dim": 32,
    "output_channels": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
}
# Stands for a tower of the package timm, whose last hidden state has rows and columns, too.
CONVNEXT = {
    "model_type": "convnext",
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_stages": 4,
    "patch_size": 4,
    "hidden_size": 16,
}


def square(seed: int, size: int = 16) -> Call:
    """The pixels of one square image."""
    return {"pixel_values": random_tensor(seed, 1, 3, size, size)}


def squares(size: int) -> dict[str, Medium]:
    """Images of `size` rows and columns."""
    return {"image": Medium(lambda seed: square(seed, size))}
