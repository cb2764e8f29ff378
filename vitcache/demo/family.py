"""`Family`: a model family of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vitcache.demo.model import AFTER_BYTES


@dataclass(frozen=True)
class Family:
    """One model family, as classes of transformers and their arguments.

    Its methods raise ImportError if the installed transformers lacks the class, or if the class needs a
    package that is not installed.

    Attributes
    ----------
    title
        The name for people.
    config_class, config
        The configuration of the model.
    processor_class, processor
        The image processor.
    inputs
        The outputs of the image processor that the model encodes. The first one is the pixels.
    dtype
        The dtype of the weights.
    images_in
        The dimension of `inputs` that counts images.
    row_pixels
        Height and width of the pixels of a row, if a token stands between the lines of rows of an image.
        None: the tokens of an image are its rows between a start and an end.
    """

    title: str
    config_class: str
    config: dict[str, Any]
    processor_class: str
    processor: dict[str, Any]
    inputs: tuple[str, ...] = ("pixel_values",)
    dtype: torch.dtype = torch.float32
    images_in: int = 0
    row_pixels: int | None = None

    def make_config(self) -> Any:
        """Return a new configuration. Text tokens are bytes in all families."""
        return _class(self.config_class)(**{**AFTER_BYTES, **self.config})

    def make_processor(self) -> Any:
        """Return a new image processor."""
        return _class(self.processor_class)(**self.processor)


def _class(name: str) -> Any:
    import transformers

    found = getattr(transformers, name, None)
    if found is None:
        raise ImportError(f"transformers {transformers.__version__} has no {name}")
    return found
