"""`ModelNamespace`: a call of `renew` by the thread that looks, as by a signal handler, takes effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from vitcache import Namespace
from vitcache.adapters.changes.model_changes import SETTINGS
from vitcache.adapters.changes.model_namespace import ModelNamespace


class Interrupting(torch.Tensor):
    """A tensor subclass that calls the next one of `interrupts` when its inner tensor is read."""

    interrupts: ClassVar[list[Callable[[], object]]] = []

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Interrupting:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made._inner = inner
        return made

    @property
    def inner(self) -> torch.Tensor:
        if Interrupting.interrupts:
            Interrupting.interrupts.pop(0)()
        return self._inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unwrapped = [arg._inner if isinstance(arg, Interrupting) else arg for arg in args]
        return func(*unwrapped, **(kwargs or {}))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(2, 2)
        self.tower.register_buffer("wrapped", Interrupting(torch.ones(2)))
        self.tower.scale = 1.0
        self.language_model = nn.Linear(2, 2)


@pytest.mark.parametrize("earlier_reads", [0, 1])
def test_renew_while_the_thread_looks_gives_each_state_a_new_namespace(earlier_reads: int) -> None:
    model = Model()
    state = ModelNamespace(model, "tower", Namespace("model"))
    values = []
    for scale in (1.0, 2.0, 1.0, 2.0):
        model.tower.scale = scale
        if len(values) >= 2:
            Interrupting.interrupts += [list] * earlier_reads + [state.renew]
        state.look()
        assert not Interrupting.interrupts
        values.append(state.value)
    assert len(set(values)) == 4


def test_setting_that_a_first_encode_wrote_is_still_watched() -> None:
    model = Model()
    names = ModelNamespace(model, "tower", Namespace("model"))
    first = names.value
    model.tower.scale = 2.0
    names.ignore_own_settings()
    assert names.look() == []
    assert names.value == first
    model.tower.scale = 5.0
    assert names.look() == [(SETTINGS, "tower.scale")]
    assert names.value != first
    model.tower.scale = 2.0
    names.look()
    assert names.value == first


def test_setting_that_first_encodes_write_twice_is_ignored() -> None:
    model = Model()
    names = ModelNamespace(model, "tower", Namespace("model"))
    first = names.value
    for number in range(5):
        model.tower.calls = number
        names.ignore_own_settings()
        assert names.look() == []
    model.tower.calls = 10
    assert names.look() == []
    assert names.value == first


def test_new_weights_end_the_names_of_settings_that_a_first_encode_wrote() -> None:
    model = Model()
    names = ModelNamespace(model, "tower", Namespace("model"))
    model.tower.scale = 2.0
    names.ignore_own_settings()
    names.renew()
    second = names.value
    model.tower.scale = 1.0
    names.look()
    assert names.value != second
    model.tower.scale = 2.0
    names.look()
    assert names.value == second
