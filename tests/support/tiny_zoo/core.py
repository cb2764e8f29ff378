"""The families of `tiny_models`, whose other tests go deeper, as members of the zoo."""

from __future__ import annotations

from tiny_family import VIDEO, TinyFamily
from tiny_grids import GridFamily
from tiny_models import FAMILIES

from tiny_zoo.tiles import VIDEO_OF_ONEVISION
from tiny_zoo.zoo_model import Medium, ZooModel


def _zoo_model(family: TinyFamily) -> ZooModel:
    media = {"image": Medium(family.picture, family.join)}
    if isinstance(family, GridFamily) and family.name in ("qwen2_vl",):
        media["video"] = Medium(family.clip, token=VIDEO)
    if family.name == "llava_onevision":
        media["video"] = VIDEO_OF_ONEVISION
    return ZooModel(family.name, family.build, media, family.row_width, token_types=family.token_types)


CORE = [_zoo_model(family) for family in FAMILIES.values()]
