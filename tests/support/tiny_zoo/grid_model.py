"""`grid_model`: a member of the zoo whose images are patches with a grid."""

from __future__ import annotations

from typing import Any

from tiny_family import HIDDEN
from tiny_grids import grid_token_types

from tiny_zoo.builder import builder
from tiny_zoo.zoo_model import Medium, ZooModel

GLM_VISION = {"hidden_size": HIDDEN, "image_size": 16}
"""Sizes of the towers of GLM and of the families that share their code."""


def grid_model(
    name: str,
    prefix: str,
    media: dict[str, Medium],
    *,
    config: str | None = None,
    row_width: int = HIDDEN,
    has_types: bool = True,
    note: str = "",
    **changes: Any,
) -> ZooModel:
    """Return the model that `builder(prefix, config, **changes)` makes.

    `has_types`: `forward` needs `mm_token_type_ids`. `note` is as in `ZooModel`.
    """
    options = {"token_types": grid_token_types} if has_types else {}
    return ZooModel(name, builder(prefix, config, **changes), media, row_width, note=note, **options)
