"""`ArgumentsByName`: binds the arguments of a call to the names of a signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

_PLAIN = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class ArgumentsByName:
    """Returns all arguments of a call by name: those of the signature first and in its order, with defaults.

    `inspect.Signature.bind` takes several times as long. It binds the calls that this class does not: those
    that `stock` would refuse, and those of an unusual signature.
    """

    def __init__(self, stock: Callable[..., Any]) -> None:
        self.signature = inspect.signature(stock)
        parameters = self.signature.parameters.values()
        named = [parameter for parameter in parameters if parameter.kind in _PLAIN]
        rest = [parameter for parameter in parameters if parameter.kind not in _PLAIN]
        self._defaults = {parameter.name: parameter.default for parameter in named}
        self._positional = [parameter.name for parameter in named if parameter.kind is _PLAIN[0]]
        self._required = [parameter.name for parameter in named if parameter.default is parameter.empty]
        self._takes_any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in rest)
        self._is_usual = all(parameter.kind is parameter.VAR_KEYWORD for parameter in rest)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by name. Raises TypeError, as a call of `stock` would."""
        arguments = {**self._defaults, **dict(zip(self._positional, args, strict=False)), **kwargs}
        given = len(args) + len(kwargs)
        is_bound = (
            self._is_usual
            and len(args) <= len(self._positional)
            and kwargs.keys().isdisjoint(self._positional[: len(args)])
            and (self._takes_any_name or len(arguments) == len(self._defaults))
            and given >= len(self._required)
        )
        if is_bound:
            for name in self._required:
                if arguments[name] is inspect.Parameter.empty:
                    is_bound = False
        return arguments if is_bound else self._bind_slowly(args, kwargs)

    def _bind_slowly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for parameter in self.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(parameter.name))
        return arguments
