"""`model_digest` is equal for equal models in every process, and differs for all that changes rows."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from quantised_tensor import QuantisedTensor
from torch import Tensor, nn

from vitcache.adapters.changes.model_digest import model_digest

ELSEWHERE = """
import torch
from torch import nn
class Model(nn.Module):
    pass
Model.__module__, Model.__qualname__ = {module!r}, {name!r}
model = Model()
# The language model and the tower are made in another order.
model.language_model = nn.Linear(2, 2)
torch.manual_seed(0)
model.tower = nn.Linear(4, 3)
model.tower.scale = 1.0
model.eval()
from vitcache.adapters.changes.model_digest import model_digest
print(model_digest(model).hex())
"""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Linear(4, 3)
        self.language_model = nn.Linear(2, 2)
        self.tower.scale = 1.0
        self.eval()


class WithScales(nn.Parameter):
    """A weight of integers with a scale beside it, as those of bitsandbytes."""

    state: Any


def flip_one_bit(model: Model) -> None:
    model.tower.weight.data.view(torch.int32)[1, 2] ^= 1


def swap_values(model: Model) -> None:
    """Move the last value of the weight to the bias: the bytes of both, end to end, stay."""
    weights = torch.cat([model.tower.weight.data.reshape(-1), model.tower.bias.data])
    model.tower.weight.data, model.tower.bias.data = weights[:8].reshape(4, 2), weights[8:]


def quantise(model: Model, scale: float) -> None:
    weight = WithScales(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    weight.state = SimpleNamespace(absmax=torch.tensor([scale]), blocksize=64)
    model.tower.weight = weight


def wrap(model: Model, factor: float) -> None:
    inner = QuantisedTensor.from_float(model.tower.weight.detach())
    model.tower.weight = nn.Parameter(QuantisedTensor(inner.values, inner.scale * factor), False)


def add_factor(factor: float, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * factor


def hook(model: Model, factor: float) -> None:
    model.tower.register_forward_hook(partial(add_factor, factor))


FACTOR = 1.0


def add_global(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * FACTOR


def hook_with_a_global(model: Model, factor: float) -> None:
    globals()["FACTOR"] = factor
    model.tower.register_forward_hook(add_global)


def wrapped(model: Model, factor: float) -> None:
    """A method with the names of one of torch, whose code is not read."""

    @functools.wraps(nn.functional.relu)
    def forward(values: Tensor) -> Tensor:
        return values * factor

    model.tower.forward = forward


def patch(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace a method of a class of torch."""
    stock = nn.Linear.forward

    def forward(self: nn.Linear, values: Tensor) -> Tensor:
        return stock(self, values) * factor

    monkeypatch.setattr(nn.Linear, "forward", forward)


def set_beside(make: Callable[[float], Any], factor: float) -> Callable[[Model], None]:
    return lambda model: setattr(model.tower, "beside", make(factor))


def linear(factor: float) -> nn.Module:
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, factor)
    nn.init.zeros_(module.bias)
    return module


# Attributes of a module that are neither weights nor settings.
BESIDE: dict[str, Callable[[float], Any]] = {
    "tensor": torch.tensor,
    "dict with a tensor, as of HQQ": lambda factor: {"scale": torch.tensor(factor), "axis": 1},
    "array": lambda factor: np.array([factor, 1]),
    "long list": lambda factor: [factor] * 2000,
    "object": lambda factor: SimpleNamespace(factor=factor),
    "module in a list": lambda factor: [linear(factor)],
}

CHANGES: dict[str, Callable[[Model], Any]] = {
    "nothing": lambda model: None,
    "one bit": flip_one_bit,
    "dtype": lambda model: model.tower.half(),
    "dtype of equal bytes": lambda model: model.register_buffer("table", torch.zeros(2, dtype=torch.int16)),
    "other dtype of them": lambda model: model.register_buffer("table", torch.zeros(2, dtype=torch.float16)),
    "shapes": swap_values,
    "name": lambda model: model.tower.register_buffer("table", torch.zeros(2, dtype=torch.int16)),
    "setting": lambda model: setattr(model.tower, "scale", 2.0),
    "training": lambda model: model.tower.train(),
    "hook": partial(hook, factor=2.0),
    "another hook": partial(hook, factor=3.0),
    "method": lambda model: setattr(model.tower, "forward", lambda values: values + 1),
    "another method": lambda model: setattr(model.tower, "forward", lambda values: values + 2),
    "hook with a global": partial(hook_with_a_global, factor=2.0),
    "another hook with a global": partial(hook_with_a_global, factor=3.0),
    "wrapped method": partial(wrapped, factor=2.0),
    "another wrapped method": partial(wrapped, factor=3.0),
    **{name: set_beside(make, 1.0) for name, make in BESIDE.items()},
    **{f"another {name}": set_beside(make, 2.0) for name, make in BESIDE.items()},
    "scales beside": partial(quantise, scale=1.0),
    "other scales beside": partial(quantise, scale=2.0),
    "scales inside": partial(wrap, factor=1.0),
    "other scales inside": partial(wrap, factor=2.0),
}


def digest_after(change: str) -> bytes:
    model = Model()
    CHANGES[change](model)
    return model_digest(model)


def test_model_digest_differs_after_each_change_of_what_decides_the_rows() -> None:
    digests = {change: digest_after(change) for change in CHANGES}
    assert len(set(digests.values())) == len(CHANGES)
    assert digests == {change: digest_after(change) for change in CHANGES}


def test_model_digest_is_equal_in_another_process_with_another_order_of_modules() -> None:
    code = ELSEWHERE.format(module=Model.__module__, name=Model.__qualname__)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [model_digest(Model()).hex()]


def test_model_digest_does_not_depend_on_strides_and_on_the_language_model() -> None:
    expected = model_digest(Model())
    model = Model()
    model.tower.weight = nn.Parameter(model.tower.weight.detach().t().contiguous().t())
    model.language_model.weight.data.zero_()
    assert not model.tower.weight.is_contiguous()
    assert model_digest(model) == expected


def test_model_digest_does_not_depend_on_the_folder_of_the_model() -> None:
    pytest.importorskip("transformers")
    from tiny_models import FAMILIES

    model = FAMILIES["gemma3"].model().model
    expected = model_digest(model)
    model.config._name_or_path = model.config.vision_config._name_or_path = "/elsewhere"
    assert model_digest(model) == expected
    model.config.vision_config.layer_norm_eps = 0.5
    assert model_digest(model) != expected


@pytest.mark.transformers
def test_model_digest_is_equal_after_a_forward_of_each_family() -> None:
    pytest.importorskip("transformers")
    from tiny_models import FAMILIES

    for family in FAMILIES.values():
        model = family.model()
        expected = model_digest(model.model)
        with torch.no_grad():
            model(**family.prompt(model, 0))
        assert model_digest(model.model) == expected, family


def test_model_digest_of_torch_quantised_weights_has_their_scales() -> None:
    values = torch.ones(2, 2)
    per_row = partial(torch.quantize_per_channel, zero_points=torch.zeros(2), axis=0, dtype=torch.qint8)
    weights = [
        torch.quantize_per_tensor(values, 0.5, 0, torch.qint8),
        torch.quantize_per_tensor(values * 2, 1.0, 0, torch.qint8),
        per_row(values, torch.tensor([0.5, 0.5])),
        per_row(values * 2, torch.tensor([1.0, 1.0])),
    ]
    digests = set()
    for weight in weights:
        model = Model()
        model.tower.register_buffer("table", weight)
        digests.add(model_digest(model))
    assert len(digests) == len(weights)


REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "offloaded": (lambda: torch.ones(2, device="meta"), "is offloaded"),
    "sparse": (lambda: torch.ones(2).to_sparse(), "has the layout torch.sparse_coo"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_model_digest_refuses_weights_that_it_cannot_read(make: Callable[[], Tensor], reason: str) -> None:
    model = Model()
    model.tower.register_buffer("table", make())
    with pytest.raises(ValueError, match=rf"tower.table {reason}.*give a namespace"):
        model_digest(model)


def test_model_digest_refuses_weights_whose_memory_was_released_and_shards() -> None:
    model = Model()
    model.tower.weight.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"tower\.weight has no memory now: give a namespace"):
        model_digest(model)
    model = Model()
    model.tower.weight.ds_id = 1  # as DeepSpeed marks a weight that it has cut
    with pytest.raises(ValueError, match=r"tower\.weight is sharded"):
        model_digest(model)


def test_model_digest_is_random_if_a_hook_has_no_name(caplog: pytest.LogCaptureFixture) -> None:
    class Stateful:
        def __call__(self, *args: Any) -> None:
            """An object with a state that no text describes."""

    model = Model()
    model.tower.register_forward_hook(Stateful())
    with caplog.at_level(logging.WARNING):
        assert model_digest(model) != model_digest(model)
    assert "tower._forward_hooks.0 of Model has no name in other processes" in caplog.text


def test_model_digest_has_the_code_of_replaced_methods_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = [model_digest(Model())]
    for factor in (2.0, 3.0, 3.0):
        with monkeypatch.context() as patches:
            patch(factor, patches)
            digests.append(model_digest(Model()))
    assert len(set(digests)) == 3
    assert digests[2] == digests[3]


class Scale(nn.Module):
    """A hook with weights that are not of the model."""

    def forward(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output


@pytest.mark.parametrize("is_closure", [False, True])
def test_model_digest_is_random_if_a_hook_has_weights_of_its_own(is_closure: bool) -> None:
    def make() -> Model:
        model, scale = Model(), Scale()
        model.tower.register_forward_hook((lambda *given: scale(*given)) if is_closure else scale)
        return model

    assert model_digest(make()) != model_digest(make())


def test_model_digest_of_a_method_that_calls_itself_is_stable() -> None:
    def make() -> Model:
        model = Model()

        def forward(self: nn.Module, values: Any) -> Any:
            return values if self is None else bound(values)

        bound = MethodType(forward, model.tower)
        model.tower.forward = bound
        return model

    assert model_digest(make()) == model_digest(make())
