"""The requests that every engine answers: 21 turns about 34 images, the first of which return at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

TURNS = ([0], [0, 1], *([first, first + 1] for first in range(2, 34, 2)), [0, 1], [1], [2, 0, 1])
# Turns one after the other, and then requests at once: with images of both tiers, new ones, and one twice.
BEFORE = ([0, 1], [7, 8], [9, 10], [11, 12])
TOGETHER = ([0, 2], [12, 1], [2, 4], [5, 0], [6, 3])
LONG = ([0, 2], [4, 6], [2, 8], [0, 10])
NUM_IMAGES = 1 + max(max(turn) for turn in TURNS)
# Height and width, in turn. In Qwen3-VL, whose patches have 16 pixels, the images have 48, 16, 48 and 6 rows:
# 3, 1, 3 and 1 pages.
SIZES = ((192, 256), (128, 128), (256, 192), (64, 96))


def image(number: int) -> Image.Image:
    """One image of noise; the same number gives the same pixels in every process."""
    height, width = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompt(numbers: list[int], placeholder: str) -> dict[str, Any]:
    """The prompt of one turn, as `LLM.generate` takes it; the placeholder is the text of one image."""
    return {
        "prompt": f"hello {placeholder * len(numbers)}Describe it.",
        "multi_modal_data": {"image": [image(number) for number in numbers]},
    }
