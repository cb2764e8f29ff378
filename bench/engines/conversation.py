"""The requests that every engine answers: turns about images, the first of which return at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from vitcache.bench.engines.model_folder import PLACEHOLDER, ROW_PIXELS

# Height and width of the images, in turn, by the size of the model.
SIZES = {
    "tiny": ((192, 256), (128, 128), (256, 192), (64, 96)),  # 48, 16, 48 and 6 rows
    "8b": ((704, 1280), (1280, 704)),  # 880 rows
}


def turns(num_images: int) -> list[list[int]]:
    """The images of each turn: each pair once, and then the first images again."""
    pairs = [[first, first + 1] for first in range(0, num_images, 2)]
    return [*pairs, [0, 1], [1], [2, 0, 1]]


def rows_of(size: str, number: int) -> int:
    """The rows of an image."""
    height, width = SIZES[size][number % len(SIZES[size])]
    return height * width // ROW_PIXELS


def image(size: str, number: int) -> Image.Image:
    """One image of noise; the same number gives the same pixels in every process."""
    height, width = SIZES[size][number % len(SIZES[size])]
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompt(size: str, numbers: list[int]) -> dict[str, Any]:
    """The prompt of one turn, as `LLM.generate` takes it."""
    return {
        "prompt": f"hello {PLACEHOLDER * len(numbers)}Describe it.",
        "multi_modal_data": {"image": [image(size, number) for number in numbers]},
    }
