"""`generate` of an attached model gives the stock tokens and logits, bit for bit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from placed_modes.cases import each_case, scene_of
from placed_modes.families import MAIN_FAMILIES
from placed_modes.generates import GENERATES

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


@each_case(MAIN_FAMILIES, GENERATES, (torch.float32, torch.bfloat16))
def test_attached_model_that_generates_gives_the_stock_bits(
    family: str, dtype: torch.dtype, mode: str
) -> None:
    scene_of(family, dtype).check(mode)
