"""`ModuleWatch`: each value that it compares, after changes of other entries of the same dicts, too."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from model_fingerprints import are_equal
from torch import nn
from torch.overrides import TorchFunctionMode

from vitcache._native import ModuleWatch
from vitcache.adapters import weights
from vitcache.adapters.changes.watched_parts import WatchedParts
from vitcache.adapters.changes.weight_parts import version_owners
from vitcache.adapters.weights import WeightsFingerprint
from vitcache.placement.destination import tensor_reader


class Wrapped(torch.Tensor):
    """A tensor subclass whose values are those of an inner tensor, as quantized weights have."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unwrapped = [arg.inner if isinstance(arg, Wrapped) else arg for arg in args]
        return func(*unwrapped, **(kwargs or {}))


class Tower(nn.Module):
    """A tower with a setting of each type."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.last = nn.Linear(2, 2)
        self.scale = 1.5
        self.active = ["a"]
        self.scaling = {"a": 1.0, "b": {"deep": [1, 2]}}
        self.names = {"x", "y"}
        self.kernel = (2, 2)
        self.dtype = torch.float32
        self.register_buffer("wrapped", Wrapped(torch.ones(2)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"to_dict": dict})()
        self.config.layer, self.config.layers = -1, [1, 2]
        self.tower = Tower()
        self.language_model = nn.Linear(2, 2)


def same_number_of_entries(model: Model) -> None:
    del model.tower.kernel
    model.tower.other = (2, 2)


CHANGES: dict[str, Callable[[Model], Any]] = {
    "a number": lambda model: setattr(model.tower, "scale", 2.5),
    "a bool in place of a number": lambda model: setattr(model.tower, "scale", True),
    "an element of a list": lambda model: model.tower.active.__setitem__(0, "b"),
    "a longer list": lambda model: model.tower.active.append("b"),
    "an emptied list": lambda model: model.tower.active.clear(),
    "another list": lambda model: setattr(model.tower, "active", ["b"]),
    "a value of a dict": lambda model: model.tower.scaling.__setitem__("a", 2.0),
    "a value of a list in a dict in a dict": lambda model: model.tower.scaling["b"]["deep"].append(3),
    "an element of a set": lambda model: model.tower.names.remove("x"),
    "another element of a set": lambda model: (model.tower.names.remove("x"), model.tower.names.add("z")),
    "a tuple": lambda model: setattr(model.tower, "kernel", (2, 3)),
    "a dtype": lambda model: setattr(model.tower, "dtype", torch.bfloat16),
    "a new setting": lambda model: setattr(model.tower, "disabled", True),
    "a deleted setting": lambda model: delattr(model.tower, "scale"),
    "another name": same_number_of_entries,
    "a part in training mode": lambda model: model.tower.last.eval(),
    "a method": lambda model: setattr(model.tower, "forward", lambda x: x),
    "a partial method": lambda model: setattr(model.tower.last, "forward", functools.partial(torch.zeros)),
    "a hook": lambda model: model.tower.last.register_forward_hook(print),
    "a pre-hook": lambda model: model.tower.register_forward_pre_hook(print),
    "a value of the config": lambda model: setattr(model.config, "layer", -2),
    "a list of the config": lambda model: model.config.layers.append(3),
    "another config": lambda model: setattr(model, "config", type("Config", (), {"to_dict": dict})()),
    "an inner tensor that is written": lambda model: model.tower.wrapped.inner.add_(1),
    "a weight that is written": lambda model: nn.init.zeros_(model.tower.first.weight),
    "new memory of a weight": lambda model: setattr(model.tower.first.weight, "data", torch.ones(2, 2)),
    "another inner tensor": lambda model: setattr(model.tower.wrapped, "inner", torch.ones(2)),
}


@pytest.mark.parametrize("is_touched", [False, True], ids=["", "dicts were changed and restored"])
@pytest.mark.parametrize("name", CHANGES)
def test_watch_notices_the_change(name: str, is_touched: bool) -> None:
    model = Model()
    before = WeightsFingerprint(model, model.tower)
    if is_touched:  # the watch cannot rely on the versions of dicts then
        for module in model.modules():
            for table in (vars(module), *filter(lambda v: isinstance(v, dict), list(vars(module).values()))):
                table["touched"] = None
                del table["touched"]
    assert before.is_current()
    CHANGES[name](model)
    assert not before.is_current()
    after = WeightsFingerprint(model, model.tower)
    assert after.is_current()
    assert not are_equal(before, after)


def test_settings_that_are_set_to_equal_values_are_unchanged() -> None:
    model = Model()
    before = WeightsFingerprint(model, model.tower)
    model.tower.active, model.tower.scale = ["".join("a")], float("1.5")
    handle = model.tower.register_forward_hook(print)
    handle.remove()
    assert before.is_current()
    assert are_equal(before, WeightsFingerprint(model, model.tower))


def test_hooks_of_the_model_and_attributes_that_its_forward_sets_are_not_watched() -> None:
    model = Model()
    before = WeightsFingerprint(model, model.tower)
    model.register_forward_hook(print)
    assert before.is_current()
    model.rope_deltas = torch.ones(2)
    model.get_image_features = print
    assert are_equal(before, WeightsFingerprint(model, model.tower))


def test_global_hook_is_noticed() -> None:
    model = Model()
    before = WeightsFingerprint(model, model.tower)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not before.is_current()
        assert not are_equal(before, WeightsFingerprint(model, model.tower))
    finally:
        handle.remove()
    assert before.is_current()


def test_number_that_gets_the_address_of_a_freed_number_is_noticed() -> None:
    model = Model()
    model.tower.scale = float("2.5")
    before = WeightsFingerprint(model, model.tower)
    for number in range(100):
        model.tower.scale = float(number)
        assert not before.is_current()


def nested(levels: int, value: float) -> Any:
    return [nested(levels - 1, value)] if levels else value


@pytest.mark.parametrize("levels", range(1, 9))
def test_number_in_nested_lists_is_noticed(levels: int) -> None:
    model = Model()
    model.tower.table = nested(levels, 1.0)
    fingerprint = WeightsFingerprint(model, model.tower)
    innermost = model.tower.table
    for _ in range(levels - 1):
        innermost = innermost[0]
    innermost[0] = 2.0
    assert not fingerprint.is_current()
    assert not are_equal(WeightsFingerprint(model, model.tower), fingerprint)


def test_containers_that_contain_themselves_or_many_values_are_no_settings() -> None:
    model = Model()
    circle: dict[str, Any] = {}
    circle["self"] = circle
    model.tower.circle, model.tower.table = circle, [[0.0] * 500] * 4
    fingerprint = WeightsFingerprint(model, model.tower)
    assert not {"tower.circle", "tower.table"} & fingerprint.settings.keys()
    model.tower.table[0][0] = 1.0
    assert fingerprint.is_current()


class Float(float):
    """A number of a library, such as NumPy."""


@pytest.mark.parametrize(
    "make", [Float, lambda index: ((index, 1), 2), lambda index: torch.device("cuda", index)]
)
def test_setting_that_gets_the_address_of_a_freed_setting_is_noticed(make: Callable[[int], Any]) -> None:
    model = Model()
    model.tower.scale = make(100)
    before = WeightsFingerprint(model, model.tower)
    for index in range(100):
        model.tower.scale = make(index)
        assert not before.is_current()


class Failing(Wrapped):
    """Its inner tensor can be read, as long as `error` is None."""

    error: BaseException | None = None

    def __getattribute__(self, name: str) -> Any:
        if name == "inner" and Failing.error is not None:
            raise Failing.error
        return super().__getattribute__(name)


@pytest.mark.parametrize("error", [AttributeError("inner"), KeyboardInterrupt()], ids=repr)
def test_error_of_a_tensor_subclass_is_a_change_and_an_interrupt_is_raised(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    model.tower.wrapped = Failing(torch.ones(2))
    before = WeightsFingerprint(model, model.tower)
    assert before.is_current()
    monkeypatch.setattr(Failing, "error", error)
    if isinstance(error, Exception):
        assert not before.is_current()
    else:
        with pytest.raises(KeyboardInterrupt):
            before.is_current()


class Changing(TorchFunctionMode):
    """Changes a setting, once, when a tensor is asked whether it is one of inference mode."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.is_inference and self.tower.kernel == (2, 2):
            self.tower.kernel = (3, 3)
        return func(*args, **(kwargs or {}))


def test_change_while_the_watch_is_made_is_noticed() -> None:
    model = Model()
    del model.tower.wrapped  # with it, the watch compares each entry
    namespace = vars(model.tower)
    namespace["_parameters"] = namespace.pop("_parameters")  # behind the settings
    model.tower.register_parameter("own", nn.Parameter(torch.ones(2)))
    parts = WatchedParts(model, frozenset())
    owners = version_owners(parts.weights.values())
    addresses = {key: owner._cdata for key, owner in owners.items()}
    with Changing(model.tower):
        watch = ModuleWatch(
            parts.namespaces, parts.watched, [], addresses, tensor_reader, torch.Tensor, weights._DATA_POINTER
        )
    assert not watch.is_current(parts.namespaces)


@pytest.mark.parametrize("name", CHANGES)
def test_watch_without_functions_of_torch_notices_the_change(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_DATA_POINTER", 0)
    monkeypatch.setattr(weights, "version_owners", lambda tensors: {})
    test_watch_notices_the_change(name, is_touched=False)


class Text(str):
    pass


NEW_VALUES: dict[str, Callable[[int], Any]] = {
    "float64 of NumPy": np.float64,
    "float32 of NumPy": np.float32,
    "int64 of NumPy": np.int64,
    "a subclass of str": lambda number: Text(number),
    "a fraction": Fraction,
    "a range": range,
    "a device": lambda number: torch.device("cpu", number),
    "a tuple in a tuple": lambda number: ((number,),),
    "a tuple with a number of NumPy": lambda number: (np.float64(number),),
}


@pytest.mark.parametrize("in_list", [False, True], ids=["", "in a list"])
@pytest.mark.parametrize("name", NEW_VALUES)
def test_setting_that_is_freed_and_replaced_by_another_one_is_noticed(name: str, in_list: bool) -> None:
    model, new = Model(), NEW_VALUES[name]
    model.tower.values = [new(100)]
    model.tower.value = new(100)
    before = WeightsFingerprint(model, model.tower)
    for number in range(50):
        if in_list:
            model.tower.values[0] = None
            model.tower.values[0] = new(number)
        else:
            model.tower.value = None
            model.tower.value = new(number)
        assert not before.is_current()
    assert not are_equal(WeightsFingerprint(model, model.tower), before)


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [1, value]], ids=["", "in a list"])
def test_fingerprint_keeps_no_attribute_that_is_not_a_setting(wrap: Callable[[Any], Any]) -> None:
    model = Model()
    module = nn.Linear(1, 1)
    model.tower.other = wrap(SimpleNamespace(module=module))
    before = WeightsFingerprint(model, model.tower)
    alive = weakref.ref(module)
    del model.tower.other, module
    assert alive() is None
    assert before.is_current() is False  # the fingerprint lives
