"""Text rows in vLLM: from the table in the same launch, or by the model."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitcache.adapters.vllm.text_rows import TextRows
from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.scatter_call import ScatterCall

HIDDEN, NUM_IDS = 6, 40


class UnquantizedEmbeddingMethod:
    pass


class VocabParallelEmbedding(torch.nn.Module):
    """A module with the attributes of vLLM's class of this name."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, tp_size: int = 1) -> None:
        super().__init__()
        rows = torch.randn(NUM_IDS + 24, HIDDEN, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(rows.to(dtype), requires_grad=False)
        self.org_vocab_size = NUM_IDS  # the rest pads the table
        self.tp_size = tp_size
        self.quant_method: Any = UnquantizedEmbeddingMethod()

    def forward(self, ids: Tensor) -> Tensor:
        return torch.nn.functional.embedding(ids.long(), self.weight)


class LoraEmbedding(VocabParallelEmbedding):
    """A class that replaces vLLM's, as for LoRA adapters."""


def make_model(table: Any, embed: Callable[[Tensor], Tensor] | None = None, **inner: Any) -> Any:
    language_model = SimpleNamespace(model=SimpleNamespace(embed_tokens=table, **inner))
    language_model.embed_input_ids = embed or table
    return SimpleNamespace(get_language_model=lambda: language_model)


def test_plain_table_is_read_by_the_launch() -> None:
    table = VocabParallelEmbedding()
    text = TextRows.of_model(make_model(table), torch.bfloat16)
    assert (text.source, text.scale) == ("table", None)
    ids = torch.tensor([3, 0, NUM_IDS - 1], dtype=torch.int32)
    out = torch.full((3, HIDDEN), torch.nan, dtype=torch.bfloat16)
    text.write(ids, out)
    assert torch.equal(out, table(ids))
    assert isinstance(text.begin(ids, out, None), EmbedCall)


def test_weight_that_was_replaced_is_read() -> None:
    table = VocabParallelEmbedding()
    text = TextRows.of_model(make_model(table), torch.bfloat16)
    table.weight = torch.nn.Parameter(table.weight * 2, requires_grad=False)
    out = torch.empty(1, HIDDEN, dtype=torch.bfloat16)
    text.write(torch.tensor([5]), out)
    assert torch.equal(out, table(torch.tensor([5])))


def test_scaled_rows_have_the_bits_of_the_model() -> None:
    table = VocabParallelEmbedding()
    normalizer = torch.tensor(HIDDEN**0.5).bfloat16()
    model = make_model(table, lambda ids: table(ids) * normalizer, normalizer=normalizer)
    text = TextRows.of_model(model, torch.bfloat16)
    assert (text.source, text.scale) == ("table", float(normalizer))
    ids = torch.arange(NUM_IDS, dtype=torch.int32)
    expected = table(ids) * normalizer
    out = torch.full_like(expected, torch.nan)
    text.write(ids, out)
    assert torch.equal(out, expected)
    out.fill_(torch.nan)
    call = text.begin(ids, out, None)
    call.run([torch.zeros(1, HIDDEN, dtype=torch.bfloat16)], [0], None)
    assert torch.equal(out[1:], expected[1:])
    assert not out[0].any()


@pytest.mark.parametrize(
    "model",
    [
        make_model(LoraEmbedding()),
        make_model(VocabParallelEmbedding(tp_size=2)),
        make_model(VocabParallelEmbedding(torch.float32)),
        make_model(None, lambda ids: torch.zeros(len(ids), HIDDEN, dtype=torch.bfloat16)),
    ],
    ids=["replaced class", "shared by ranks", "other dtype", "no table"],
)
def test_unusual_table_leaves_text_rows_to_the_model(model: Any) -> None:
    assert TextRows.of_model(model, torch.bfloat16).source == "model"


def test_quantized_table_leaves_text_rows_to_the_model() -> None:
    table = VocabParallelEmbedding()
    table.quant_method = SimpleNamespace()
    assert TextRows.of_model(make_model(table), torch.bfloat16).source == "model"


def test_table_with_a_hook_leaves_text_rows_to_the_model() -> None:
    table = VocabParallelEmbedding()
    table.register_forward_hook(lambda module, arguments, rows: rows + 1)
    assert TextRows.of_model(make_model(table), torch.bfloat16).source == "model"


def test_look_up_that_does_more_than_the_table_leaves_text_rows_to_the_model() -> None:
    table = VocabParallelEmbedding()
    text = TextRows.of_model(make_model(table, lambda ids: table(ids) + 1), torch.bfloat16)
    assert text.source == "model"
    ids, out = torch.tensor([2, 3]), torch.full((2, HIDDEN), torch.nan, dtype=torch.bfloat16)
    assert isinstance(text.begin(ids, out, None), ScatterCall)
    assert torch.equal(out, table(ids) + 1)
