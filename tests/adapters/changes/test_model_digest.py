"""`model_digest` is equal for equal models in every process, and differs for all that changes rows."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

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
