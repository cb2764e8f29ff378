"""`invalidate_after` calls functions after each call of a method, and leaves the method as it is."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from attached import GEMMA, logits, pair
from torch import nn

from vitcache import invalidate_after
from vitcache.adapters.changes.model_changes import INVALIDATED


class Owner:
    """Has methods of each kind. Each returns the name of its owner and its arguments."""

    name = "owner"

    def method(self, *args: Any, **kwargs: Any) -> Any:
        return self.name, args, kwargs

    @classmethod
    def of_class(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.name, args, kwargs

    @staticmethod
    def static(*args: Any, **kwargs: Any) -> Any:
        return "owner", args, kwargs

    partly = partial(static.__func__, 0)

    def fail(self) -> None:
        raise KeyError(self.name)

    def generate(self) -> Any:
        yield self.name

    async def wait(self, *args: Any) -> Any:
        await asyncio.sleep(0)
        return self.name, args

    async def wait_and_fail(self) -> None:
        await asyncio.sleep(0)
        raise KeyError(self.name)

    def wait_later(self, *args: Any) -> Any:
        return self.wait(*args)


class Heir(Owner):
    name = "heir"


class Slots:
    __slots__ = ()

    def method(self) -> None:
        """Do nothing."""


def module_of(function: Callable[..., Any]) -> ModuleType:
    module = ModuleType("syncs")
    module.method = function
    return module


def call_of(owner: Any, name: str) -> Callable[..., Any]:
    """The method of an instance of the owner."""
    return getattr(owner() if isinstance(owner, type) and name == "method" else owner, name)


@pytest.mark.parametrize("name", ["method", "of_class", "static", "partly"])
@pytest.mark.parametrize(
    "make_owner",
    [Owner, Heir, lambda: type("Copy", (), dict(vars(Owner))), lambda: type("Child", (Owner,), {})],
)
def test_function_is_called_after_each_call_until_it_is_removed(
    make_owner: Callable[[], Any], name: str
) -> None:
    owner, calls = make_owner(), []
    before, expected = dict(vars(owner)), call_of(owner, name)(1, key=2)
    handle = invalidate_after(owner, name, lambda: calls.append(1))
    for num_calls in (1, 2):
        assert call_of(owner, name)(1, key=2) == expected
        assert len(calls) == num_calls
    for _ in range(2):
        handle.remove()
        assert call_of(owner, name)(1, key=2) == expected
        assert len(calls) == 2
    assert {key: value for key, value in vars(owner).items() if not key.startswith("__")} == {
        key: value for key, value in before.items() if not key.startswith("__")
    }


@pytest.mark.parametrize("make_owner", [module_of, lambda function: SimpleNamespace(method=function)])
def test_function_of_a_module_or_an_attribute_is_replaced(make_owner: Callable[[Any], Any]) -> None:
    owner, calls = make_owner(Owner.static), []
    handle = invalidate_after(owner, "method", lambda: calls.append(1))
    assert owner.method(3) == Owner.static(3)
    assert calls == [1]
    handle.remove()
    assert owner.method is Owner.static


def test_other_instances_of_the_class_keep_the_method_and_a_class_changes_all() -> None:
    owner, other, calls = Heir(), Heir(), []
    handle = invalidate_after(owner, "method", lambda: calls.append("owner"))
    other.method()
    assert calls == []
    of_class = invalidate_after(Heir, "method", lambda: calls.append("class"))
    Owner().method()
    other.method()
    assert calls == ["class"]
    of_class.remove()
    handle.remove()
    assert not {*vars(owner), *vars(Heir)} & {"method"}


def test_functions_are_called_in_order_also_after_errors() -> None:
    owner, calls = Owner(), []

    def fail() -> None:
        calls.append("fail")
        raise ValueError("of the function")

    invalidate_after(owner, "fail", lambda: calls.append("first"), lambda: calls.append("second"))
    with pytest.raises(KeyError, match="owner"):
        owner.fail()
    assert calls == ["first", "second"]
    calls.clear()
    invalidate_after(owner, "method", fail, lambda: calls.append("second"))
    with pytest.raises(ValueError, match="of the function"):
        owner.method()
    assert calls == ["fail", "second"]


@pytest.mark.parametrize("name", ["wait", "wait_later"])
def test_functions_are_called_after_the_awaited_result(name: str) -> None:
    owner, calls = Owner(), []
    handle = invalidate_after(owner, name, lambda: calls.append(1))

    async def run() -> Any:
        earlier = [*calls]
        waiting = getattr(owner, name)(5)
        assert calls == earlier
        return await waiting

    assert asyncio.run(run()) == ("owner", (5,))
    assert calls == [1]
    assert inspect.iscoroutinefunction(getattr(owner, name)) is (name == "wait")
    handle.remove()
    assert asyncio.run(run()) == ("owner", (5,))
    assert calls == [1]


def test_coroutine_functions_are_awaited_after_a_coroutine_that_raises() -> None:
    owner, calls = Owner(), []

    async def reset() -> None:
        await asyncio.sleep(0)
        calls.append("reset")

    invalidate_after(owner, "wait_and_fail", reset, lambda: calls.append("second"))
    with pytest.raises(KeyError, match="owner"):
        asyncio.run(owner.wait_and_fail())
    assert calls == ["reset", "second"]


def test_functions_are_called_when_a_future_is_done() -> None:
    future, calls = Future(), []
    owner = SimpleNamespace(method=lambda: future)
    invalidate_after(owner, "method", lambda: calls.append(1))
    assert owner.method() is future
    assert calls == []
    future.set_result(None)
    assert calls == [1]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_handles_of_one_method_are_removed_in_any_order(order: tuple[int, int]) -> None:
    owner, calls = Owner(), []
    handles = [invalidate_after(owner, "method", partial(calls.append, index)) for index in range(2)]
    owner.method()
    assert calls == [0, 1]
    calls.clear()
    handles[order[0]].remove()
    owner.method()
    assert calls == [order[1]]
    handles[order[1]].remove()
    assert owner.method() == ("owner", (), {})
    assert calls == [order[1]]


@pytest.mark.parametrize("num_handles", [1, 2])
def test_deep_copy_of_the_owner_calls_its_own_method_and_the_functions(num_handles: int) -> None:
    owner, calls = Owner(), []
    for _ in range(num_handles):
        invalidate_after(owner, "method", calls.clear, partial(calls.append, 1))
    copied = copy.deepcopy(owner)
    copied.name = "copied"
    assert copied.method() == ("copied", (), {})
    assert calls == [1]


def test_pickle_of_the_owner_has_its_own_stock_method() -> None:
    owner, calls = nn.Linear(2, 2), []
    invalidate_after(owner, "reset_parameters", lambda: calls.append(1))
    loaded = pickle.loads(pickle.dumps(owner))
    weight = loaded.weight.detach().clone()
    loaded.reset_parameters()
    assert calls == []
    assert not torch.equal(loaded.weight, weight)
    owner.reset_parameters()
    assert calls == [1]


@pytest.mark.parametrize(
    ("owner", "name", "functions", "error", "message"),
    [
        (Owner(), 3, (print,), TypeError, "name must be a str, got int"),
        (Owner(), "method", (), TypeError, "needs a function to call"),
        (Owner(), "method", (print, 3), TypeError, "such as attachment.invalidate, got int"),
        (Owner(), "spam", (print,), AttributeError, "spam of Owner does not exist"),
        (Owner, "spam", (print,), AttributeError, "spam of Owner does not exist"),
        (Owner(), "name", (print,), TypeError, "name of Owner is a str, not a method"),
        (Owner(), "generate", (print,), TypeError, "generate of Owner is a generator function"),
        (Owner(), "method", (Owner().wait,), TypeError, "method of Owner is not a coroutine function"),
        (Owner(), "__eq__", (print,), TypeError, "looks up __eq__ in the class: give Owner as owner"),
        (Slots(), "method", (print,), TypeError, "method of Slots cannot be replaced"),
        (torch.Tensor.add, "__name__", (print,), TypeError, "not a method"),
        (dict, "update", (print,), TypeError, "update of dict cannot be replaced"),
        (nn.Sequential(nn.ReLU()), "0", (print,), TypeError, "0 of Sequential cannot be replaced"),
    ],
)
def test_wrong_arguments_are_refused(
    owner: Any, name: Any, functions: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        invalidate_after(owner, name, *functions)


class Generation:
    """Has the method of TRL's `VLLMGeneration` that copies the policy's weights."""

    def __init__(self, policy: nn.Module, served: nn.Module) -> None:
        self.policy, self.served = policy, served

    def sync_weights(self) -> None:
        for target, source in zip(self.served.parameters(), self.policy.parameters(), strict=True):
            target.data.copy_(source.data)


class SyncRefModelCallback:
    """Has the method of TRL's callback of this name."""

    @staticmethod
    def sync_target_model(model: nn.Module, target_model: nn.Module, alpha: float) -> None:
        for target, source in zip(target_model.parameters(), model.parameters(), strict=True):
            target.data.mul_(1.0 - alpha).add_(source.data, alpha=alpha)

    def on_step_end(self, model: nn.Module, target_model: nn.Module) -> None:
        self.sync_target_model(model, target_model, 1.0)


def test_sync_of_the_weights_gives_the_logits_of_the_policy() -> None:
    stock, served, attachment, _ = pair(GEMMA)
    policy, prompt = GEMMA.model(seed=1), GEMMA.prompt(served, 0)
    generation = Generation(policy, served)
    invalidate_after(generation, "sync_weights", attachment.invalidate)
    assert torch.equal(logits(served, prompt), logits(stock, prompt))
    generation.sync_weights()
    assert torch.equal(logits(served, prompt), logits(policy, prompt))
    assert attachment.stats().changes == {INVALIDATED: 1}


def test_sync_of_the_reference_model_gives_the_logits_of_the_policy() -> None:
    stock, reference, attachment, _ = pair(GEMMA)
    policy, prompt = GEMMA.model(seed=1), GEMMA.prompt(reference, 0)
    handle = invalidate_after(SyncRefModelCallback, "sync_target_model", attachment.invalidate)
    assert torch.equal(logits(reference, prompt), logits(stock, prompt))
    SyncRefModelCallback().on_step_end(policy, reference)
    handle.remove()
    assert torch.equal(logits(reference, prompt), logits(policy, prompt))
    assert attachment.stats().changes == {INVALIDATED: 1}
