"""The families that are not in `MAIN_FAMILIES` give the stock bits, too; most modes are soak tests."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from placed_modes.calls import CALLS
from placed_modes.cases import each_case, scene_of
from placed_modes.families import MAIN_FAMILIES
from placed_modes.generates import GENERATES
from placed_modes.media_calls import MEDIA_CALLS
from tiny_zoo import ZOO

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

FAMILIES = [name for name in ZOO if name not in MAIN_FAMILIES]


@each_case(FAMILIES, ["padded left", "batch padded left", *MEDIA_CALLS], (torch.float32,))
def test_attached_model_of_another_family_gives_the_stock_bits(
    family: str, dtype: torch.dtype, mode: str
) -> None:
    scene_of(family, dtype).check(mode)


@each_case(FAMILIES, ["three images", "batch padded left"], (torch.bfloat16,))
def test_attached_model_of_another_family_in_bfloat16_gives_the_stock_bits(
    family: str, dtype: torch.dtype, mode: str
) -> None:
    scene_of(family, dtype).check(mode)


@pytest.mark.soak
@each_case(FAMILIES, [*CALLS, *GENERATES], (torch.float32, torch.bfloat16))
def test_attached_model_of_another_family_gives_the_stock_bits_in_every_mode(
    family: str, dtype: torch.dtype, mode: str
) -> None:
    scene_of(family, dtype).check(mode)
