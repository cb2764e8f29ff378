"""`OutputForm`: makes an output of the stock class, whatever fields that class has."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vitcache.adapters.model_outputs import item_rows
from vitcache.adapters.output_form import OutputForm
from vitcache.cache.embedding_cache import EmbeddingCache


@dataclass
class RequiresHiddenState:
    last_hidden_state: Tensor | None
    pooler_output: Tensor | None = None


@dataclass
class LacksThePooledRows:
    last_hidden_state: Tensor | None = None


@dataclass
class HasLevels:
    pooler_output: tuple[Tensor, ...] | None = None
    deepstack_features: list[tuple[Tensor, ...]] | None = None


@pytest.mark.parametrize("cls", [RequiresHiddenState, LacksThePooledRows])
def test_output_has_the_rows_and_no_hidden_state(cls: type) -> None:
    features = torch.randn(1, 3, 8)
    output = cls(last_hidden_state=torch.randn(1, 5, 4))
    output.pooler_output = features
    rows = item_rows(output)
    cache = EmbeddingCache(8, dtype=torch.float32, device="cpu", device_bytes=1 << 16)
    form = OutputForm.of(output, rows)
    assembled = form.output(form.planes([rows, rows], cache), [3, 3])
    assert type(assembled) is cls
    assert assembled.last_hidden_state is None
    assert torch.equal(assembled.pooler_output, torch.cat([features, features]))


@pytest.mark.parametrize("levels", [None, []], ids=["None", "empty"])
def test_output_without_deepstack_levels_keeps_the_value_of_their_field(
    levels: list[tuple[Tensor, ...]] | None,
) -> None:
    output = HasLevels((torch.randn(3, 8),), levels)
    form = OutputForm.of(output, item_rows(output))
    assert form.output([torch.randn(5, 8)], [2, 3]).deepstack_features == levels
