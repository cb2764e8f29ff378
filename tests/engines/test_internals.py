"""The check of vLLM's internals accepts the released vLLM, and names each function and field it lacks."""

from __future__ import annotations

import inspect
from dataclasses import fields, make_dataclass
from importlib import import_module
from typing import Any

import pytest

pytest.importorskip("vllm")

from vitcache.adapters.vllm import internals
from vitcache.adapters.vllm.internals import BATCH, BATCH_FIELDS, FUNCTIONS, check_attributes, check_internals

every_function = pytest.mark.parametrize(("module", "name"), FUNCTIONS, ids=[name for _, name in FUNCTIONS])
ADVICE = "Set place_rows to false in ec_connector_extra_config"


def find_owner(module: str, name: str) -> tuple[Any, str]:
    """The class or module that defines a function, and the function's name there."""
    owner: Any = import_module(module)
    *parts, last = name.split(".")
    for part in parts:
        owner = getattr(owner, part)
    if inspect.isclass(owner):
        owner = next(base for base in owner.__mro__ if last in vars(base))
    return owner, last


def refusal() -> str:
    with pytest.raises(RuntimeError) as caught:
        check_internals()
    assert ADVICE in str(caught.value)
    return str(caught.value)


def test_released_vllm_has_all_internals() -> None:
    check_internals()


@every_function
def test_function_with_another_parameter_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    def changed(self: Any, another: Any) -> None: ...

    monkeypatch.setattr(*find_owner(module, name), changed)
    message = refusal()
    assert f"{module}.{name} has the parameters ('self', 'another')" in message


@every_function
def test_removed_function_is_named(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    owner, last = find_owner(module, name)
    bases = owner.__mro__[:-1] if inspect.isclass(owner) else [owner]
    for base in [each for each in bases if last in vars(each)]:
        monkeypatch.delattr(base, last)
    assert f"{module}.{name} " in refusal()


@pytest.mark.parametrize("field", BATCH_FIELDS)
def test_removed_field_of_a_batch_is_named(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    module, name = BATCH
    present = [each.name for each in fields(getattr(import_module(module), name))]
    assert field in present
    present.remove(field)
    monkeypatch.setattr(import_module(module), name, make_dataclass(name, present))
    assert f"{module}.{name} lacks the fields {field}: " in refusal()


GROUPS = ("RUNNER", "STATE", "ENCODER", "MODEL", "LORA", "DEEPSTACK")


@pytest.mark.parametrize("group", [f"{name}_ATTRIBUTES" for name in GROUPS])
def test_missing_attribute_of_an_object_is_named(group: str) -> None:
    names = getattr(internals, group)
    for missing in names:
        owner = type("Owner", (), dict.fromkeys(names, 0))()
        check_attributes(owner, names)
        delattr(type(owner), missing)
        with pytest.raises(RuntimeError, match=rf"Owner lacks the attributes {missing}: .*{ADVICE}"):
            check_attributes(owner, names)
