"""`grid_model`: a member of the zoo whose images are patches with a grid."""

from __future__ import annotations

from typing import Any

from tiny_family import HIDDEN
from tiny_grids import grid_token_types
from torch import nn

from tiny_zoo.configs import tiny_config
from tiny_zoo.zoo_model import Medium, ZooModel

GLM_VISION = {"hidden_size": HIDDEN, "image_size": 16}
"""Sizes of the towers of GLM and of the families that share their code."""


def grid_model(
    name: str,
    prefix: str,
    media: dict[str, Medium],
    *,
    head: str | None = None,
    row_width: int = HIDDEN,
    has_types: bool = True,
    since: tuple[int, int] = (5, 17),
    **changes: Any,
) -> ZooModel:
    """Return the model of the classes of transformers with this prefix.

    `head` names the class of the model if the prefix does not. `has_types`: `forward` needs
    `mm_token_type_ids`. `since` is as in `ZooModel`. `changes` replace values of the tiny config.
    """

    def build() -> nn.Module:
        import transformers

        config = tiny_config(getattr(transformers, f"{prefix}Config"), **changes)
        return getattr(transformers, head or f"{prefix}ForConditionalGeneration")(config)

    options = {"token_types": grid_token_types} if has_types else {}
    return ZooModel(name, build, media, row_width, since=since, **options)
