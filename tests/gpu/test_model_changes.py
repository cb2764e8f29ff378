"""On a GPU, an attached model notices the steps of each kind of optimizer, and conversions of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import QWEN3
from machine import Machine
from tiny_models import Call, one_at_a_time
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from vitcache.adapters.transformers import attach

pytestmark = pytest.mark.transformers

# The second argument is false in a dry run: a CPU has no capturable optimizers.
OPTIMIZERS: dict[str, Callable[[Any, bool], torch.optim.Optimizer]] = {
    "foreach": lambda weights, _: AdamW(weights, lr=0.1, foreach=True),
    "fused": lambda weights, _: AdamW(weights, lr=0.1, fused=True),
    "fused SGD": lambda weights, _: SGD(weights, lr=0.1, fused=True),
    "capturable": lambda weights, is_gpu: Adam(weights, lr=0.1, capturable=is_gpu),
    "fused and capturable": lambda weights, is_gpu: Adam(weights, lr=0.1, fused=True, capturable=is_gpu),
}


def make_pair(gpu: Machine) -> tuple[nn.Module, nn.Module, Call]:
    stock, model = (QWEN3.model().to(gpu.device) for _ in range(2))
    prompt = {name: value.to(gpu.device) for name, value in QWEN3.prompt(QWEN3.model(), 0).items()}
    return one_at_a_time(QWEN3, stock), model, prompt


def logits(model: nn.Module, prompt: Call) -> Tensor:
    with torch.no_grad():
        return model(**prompt).logits


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_logits_after_a_step_of_an_optimizer_are_those_of_the_stock_model(gpu: Machine, name: str) -> None:
    stock, model, prompt = make_pair(gpu)
    attachment = attach(model)
    optimizers = [OPTIMIZERS[name](each.model.visual.parameters(), not gpu.dry) for each in (stock, model)]
    before = logits(model, prompt)
    for each, optimizer in zip((stock, model), optimizers, strict=True):
        for number, weight in enumerate(each.model.visual.parameters()):
            weight.grad = torch.full_like(weight, 1 + number % 3)
        optimizer.step()
    after = logits(model, prompt)
    assert not torch.equal(before, after)
    assert torch.equal(after, logits(stock, prompt))
    assert torch.equal(logits(model, prompt), after)
    assert attachment.stats().hits == 1


def test_logits_after_a_conversion_there_and_back_are_those_of_the_stock_model(gpu: Machine) -> None:
    stock, model, prompt = make_pair(gpu)
    attachment = attach(model)
    before = logits(model, prompt)
    for each in (stock, model):
        each.model.visual.to(torch.bfloat16).to(torch.float32)
    after = logits(model, prompt)
    assert not torch.equal(before, after)
    assert torch.equal(after, logits(stock, prompt))
    assert attachment.stats().changes == {"weights or modules were replaced": 1}


def test_check_of_a_model_that_did_not_change_does_not_wait_for_the_gpu(gpu: Machine) -> None:
    _, model, prompt = make_pair(gpu)
    attachment = attach(model)
    logits(model, prompt)
    session = attachment._session
    with gpu.no_host_sync():
        session.current_namespace()
        attachment.invalidate()
        session.current_namespace()
