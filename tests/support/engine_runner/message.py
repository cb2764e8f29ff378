"""A message with images, as OpenAI's API takes it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image


def message(images: Sequence[Image.Image], text: str = "Describe it.") -> dict[str, Any]:
    """A message of a user: images, and then a text."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(image)}} for image in images
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def data_url(image: Image.Image) -> str:
    """An image as a URL that contains it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # noise can hardly be compressed
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
