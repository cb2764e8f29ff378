"""Tiny models of every family that `attach` serves: `ZOO`, by name."""

from __future__ import annotations

from tiny_zoo.core import CORE
from tiny_zoo.crops import CROPS
from tiny_zoo.deepseek import DEEPSEEK
from tiny_zoo.encoder_decoders import ENCODER_DECODERS
from tiny_zoo.grids import GRIDS
from tiny_zoo.grids_more import GRIDS_MORE
from tiny_zoo.nemotron import NEMOTRON
from tiny_zoo.omni import OMNI
from tiny_zoo.others import OTHERS
from tiny_zoo.speech import SPEECH
from tiny_zoo.squares import SQUARES
from tiny_zoo.stacks import STACKS
from tiny_zoo.tiles import TILES
from tiny_zoo.whole_omni import WHOLE_OMNI
from tiny_zoo.zoo_model import Medium, ZooModel, stock_each

__all__ = ["ZOO", "Medium", "ZooModel", "stock_each"]

ZOO: dict[str, ZooModel] = {
    model.name: model
    for model in (
        *CORE,
        *GRIDS,
        *GRIDS_MORE,
        *OMNI,
        *WHOLE_OMNI,
        *NEMOTRON,
        *SQUARES,
        *CROPS,
        *TILES,
        *STACKS,
        *DEEPSEEK,
        *ENCODER_DECODERS,
        *OTHERS,
        *SPEECH,
    )
}
