"""The families of `tiny_models`, whose other tests go deeper, as members of the zoo."""

from __future__ import annotations

from dataclasses import replace

from tiny_family import VIDEO, Call, TinyFamily
from tiny_grids import GridFamily
from tiny_models import FAMILIES

from tiny_zoo.tiles import VIDEO_OF_ONEVISION
from tiny_zoo.zoo_model import Medium, ZooModel


def _zoo_model(family: TinyFamily) -> ZooModel:
    media = {"image": Medium(family.picture, family.join)}
    if isinstance(family, GridFamily):
        media["video"] = _video(family)
    if family.name == "llava_onevision":
        media["video"] = VIDEO_OF_ONEVISION
    return ZooModel(family.name, family.build, media, family.row_width, token_types=family.token_types)


def _video(family: GridFamily) -> Medium:
    def tokens(call: Call, length: int) -> list[int]:
        return [token for token, _ in family.video_tokens(call["video_grid_thw"][0].tolist())]

    # The seconds between frames are arguments of `forward`, not of the stock method.
    return Medium(replace(family, has_seconds=False).clip, token=VIDEO, layout=tokens)


CORE = [_zoo_model(family) for family in FAMILIES.values()]
