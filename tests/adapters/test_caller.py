"""`is_called_by_stock_code`: the merge of a method `forward` that the user calls himself is not placed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import logits, plain_kernels  # noqa: F401
from ready_models import each_kind, placed, ready
from tiny_models import Call
from torch import Tensor, nn

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


def forward_of_embeddings(model: Any, prompt: Call) -> tuple[Tensor, Tensor]:
    """The hidden states of the user's own embeddings, by a method that runs no hooks; the embeddings."""
    embeds = model.get_input_embeddings()(prompt["input_ids"]).clone()
    call = {name: value for name, value in prompt.items() if name not in ("input_ids", "mm_token_type_ids")}
    return model.base_model.forward(inputs_embeds=embeds, **call).last_hidden_state, embeds


def assert_embeddings_are_not_written(stock: nn.Module, model: Any, prompt: Call) -> None:
    states, embeds = forward_of_embeddings(model, prompt)
    assert torch.equal(embeds, stock.get_input_embeddings()(prompt["input_ids"]))
    assert torch.equal(states, forward_of_embeddings(stock, prompt)[0])


@each_kind
@torch.no_grad()
def test_forward_method_after_an_interrupted_call_does_not_write_to_embeddings(name: str) -> None:
    stock, model, attachment, prompt = ready(name)
    logits(stock, prompt)  # without ids, Qwen's positions are those of the last call

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.base_model.language_model.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        model(**prompt)
    hook.remove()
    assert_embeddings_are_not_written(stock, model, prompt)
    assert placed(attachment, lambda: logits(model, prompt)) == (1, {})


@each_kind
@torch.no_grad()
def test_forward_method_in_a_hook_of_a_call_does_not_write_to_embeddings(name: str) -> None:
    stock, model, attachment, prompt = ready(name)
    expected, hooks = logits(stock, prompt), []

    def run(*_: Any) -> None:
        hooks.pop().remove()
        assert_embeddings_are_not_written(stock, model, prompt)

    hooks.append(model.base_model.language_model.register_forward_pre_hook(run))
    found: list[Tensor] = []
    assert placed(attachment, lambda: found.append(logits(model, prompt))) == (1, {})
    assert hooks == []
    assert torch.equal(found[0], expected)
