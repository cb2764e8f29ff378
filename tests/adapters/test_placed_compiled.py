"""With a compiled language model, an attached model gives the bits of the stock model, compiled too."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from placed_modes.cases import each_case, scene_of
from placed_modes.compiled import COMPILED
from placed_modes.families import MAIN_FAMILIES

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


@each_case(MAIN_FAMILIES, COMPILED, (torch.float32,))
def test_attached_model_with_a_compiled_language_model_gives_the_stock_bits(
    family: str, dtype: torch.dtype, mode: str
) -> None:
    scene_of(family, dtype).check(mode)
