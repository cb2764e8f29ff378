"""`ArgumentsByName`: binds like `inspect.Signature`, and refuses the same calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from vitcache.adapters.arguments_by_name import ArgumentsByName


def usual(pixels: Any, grid: Any = None, **kwargs: Any) -> None: ...


def closed(pixels: Any, grid: Any, *, layer: int = -1) -> None: ...


def unusual(pixels: Any, /, *rest: Any, **kwargs: Any) -> None: ...


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, 2), {}),
    ((1,), {"grid": 2, "other": 3}),
    ((), {"other": 3, "grid": 2, "pixels": 1}),
    ((1, 2), {"layer": 3}),
    ((), {"layer": 3, "grid": 2, "pixels": 1}),
    ((), {}),
    ((), {"grid": 2}),
    ((1, 2), {"grid": 2}),
    ((1, 2, 3), {}),
    ((1,), {"pixels": 1}),
]


@pytest.mark.parametrize("function", [usual, closed, unusual])
@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_arguments_by_name_equal_those_of_the_signature(
    function: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert outcome(ArgumentsByName(function), args, kwargs) == outcome(slowly(function), args, kwargs)


def slowly(function: Callable[..., None]) -> Callable[..., dict[str, Any]]:
    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        rest = bound.arguments.pop("kwargs", {})
        return {**bound.arguments, **rest}

    return bind


def outcome(bind: Callable[..., dict[str, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments in their order, or the message of the refusal."""
    try:
        return list(bind(args, kwargs).items())
    except TypeError as error:
        return str(error)
