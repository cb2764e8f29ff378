"""Pairs of a stock model and an attached model, and functions that compare their outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, Call, TinyFamily, one_at_a_time, stock_method
from torch import Tensor, nn

from vitcache.adapters.transformers import Attachment, attach

QWEN3 = FAMILIES["qwen3_vl"]
GEMMA = FAMILIES["gemma3"]

each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@pytest.fixture
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn oneDNN off: if a virtual machine reports AMX but cannot run it, bfloat16 kills the process."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)


def mixed(dtype: torch.dtype) -> nn.Module:
    """A model whose tower has bfloat16 weights, and whose merger has weights of another dtype."""
    model = FAMILIES["qwen2_5_vl"].model(torch.bfloat16)
    merger = model.model.visual.merger.to(dtype)
    merger.register_forward_pre_hook(lambda module, args: (args[0].to(dtype), *args[1:]))
    return model


class Tower:
    """Counts the calls of a model's vision tower; `take` returns the count and sets it to 0."""

    def __init__(self, family: TinyFamily, model: nn.Module) -> None:
        self.calls = 0
        getattr(model.base_model, family.tower).register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def take(self) -> int:
        calls, self.calls = self.calls, 0
        return calls


def pair(
    family: TinyFamily, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[nn.Module, nn.Module, Attachment, Tower]:
    """A stock model that encodes one image per call, and an equal model with vitcache attached."""
    stock, model = one_at_a_time(family, family.model(dtype)), family.model(dtype)
    return stock, model, attach(model, **options), Tower(family, model)


@torch.no_grad()
def logits(model: nn.Module, prompt: Call) -> Tensor:
    return model(**prompt).logits


@torch.no_grad()
def generate(model: nn.Module, prompt: Call, **mode: Any) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    options = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    output = model.generate(**prompt, **options, **mode)
    return output.sequences, torch.stack(output.logits)


@torch.no_grad()
def features(model: nn.Module, call: Call, **options: Any) -> Any:
    return model.get_image_features(**call, return_dict=True, **options)


@torch.no_grad()
def image_rows(model: nn.Module, call: Call, **options: Any) -> Tensor:
    return torch.cat(list(model.get_image_features(**call, **options).pooler_output))


@torch.no_grad()
def stock_rows(model: nn.Module, call: Call) -> Tensor:
    return torch.cat(list(stock_method(model, "image")(**call).pooler_output))


def tensors(output: Any) -> list[Tensor]:
    """The tensors of an output, in order, for the output types of both supported transformers versions."""
    if isinstance(output, Tensor):
        return [output]
    if not isinstance(output, list | tuple):
        output = [output.pooler_output, getattr(output, "deepstack_features", None) or []]
    return [tensor for part in output for tensor in tensors(part)]


def form(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.shape, output.stride(), output.dtype, output.device, output.requires_grad
    if isinstance(output, list | tuple):
        return type(output), [form(part) for part in output]
    return type(output), form(output.pooler_output), form(getattr(output, "deepstack_features", None) or [])


def assert_same_bits(first: Any, second: Any) -> None:
    assert len(tensors(first)) == len(tensors(second)) > 0
    for a, b in zip(tensors(first), tensors(second), strict=True):
        assert torch.equal(a, b)
