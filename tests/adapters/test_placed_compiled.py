"""With a compiled language model, an attached model gives the bits of the stock model, compiled too."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from placed_modes.cases import each_case, scene_of
from placed_modes.compiled import COMPILED
from placed_modes.families import MAIN_FAMILIES
from torch_version import IS_OLDEST

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

NO_GRAPH_IN_TORCH_2_9 = ("qwen3_vl", "qwen3_vl_moe", "gemma4")
"""Their language models index by a mask, or make a DynamicCache."""


@each_case(MAIN_FAMILIES, COMPILED, (torch.float32,))
def test_attached_model_with_a_compiled_language_model_gives_the_stock_bits(
    family: str, dtype: torch.dtype, mode: str
) -> None:
    if IS_OLDEST and family in NO_GRAPH_IN_TORCH_2_9:
        pytest.skip("torch 2.9 does not compile the stock language model to one graph")
    scene_of(family, dtype).check(mode)
