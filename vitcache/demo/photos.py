"""Photographs from the scikit-image and scikit-learn wheels; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

_FILES = (
    ("sklearn", "datasets/images/china.jpg"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/motorcycle_right.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/ihc.png"),
)
# A long conversation needs more images than there are files: each file is also shown in three more views.
_VIEWS: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("", lambda pixels: pixels),
    (" mirrored", lambda pixels: pixels[:, ::-1]),
    (" upside down", lambda pixels: pixels[::-1]),
    (" turned round", lambda pixels: pixels[::-1, ::-1]),
)

MAX_PHOTOS = len(_FILES) * len(_VIEWS)


class Photo(NamedTuple):
    """A photograph: its name, and its pixels as a contiguous uint8 array ``(height, width, 3)``."""

    name: str
    pixels: np.ndarray


def load_photos(count: int) -> list[Photo]:
    """Return the first `count` of `MAX_PHOTOS` distinct photographs, always in the same order.

    Raises
    ------
    ValueError
        If `count` is not from 1 to `MAX_PHOTOS`.
    FileNotFoundError
        If a package is not installed, or lacks one of its photographs.
    """
    if not 1 <= count <= MAX_PHOTOS:
        raise ValueError(f"count must be from 1 to {MAX_PHOTOS}, the number of photographs, got {count}")
    from PIL import Image

    photos = []
    for number in range(count):
        label, view = _VIEWS[number // len(_FILES)]
        path = _locate(*_FILES[number % len(_FILES)])
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        photos.append(Photo(path.stem + label, np.ascontiguousarray(view(pixels))))
    return photos


def _locate(package: str, name: str) -> Path:
    """Return the path of a data file of `package` without importing the package, which would take seconds."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the photograph {name} is in the package {package}, which is not installed")
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise FileNotFoundError(f"the package {package} in {path.parent} lacks the photograph {path.name}")
    return path
