"""`CodeTexts`: texts that name functions in every process, of which a module's rows may depend."""

from __future__ import annotations

import dis
import functools
import logging
import sys
from collections.abc import Iterable
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from vitcache.adapters.changes.settings import describe

# Functions of these packages are named, and not read: the versions of the packages stand for their code.
LIBRARIES = frozenset({"torch", "transformers", "accelerate", "peft"})
# Modules whose attributes a function may use, beside those of Python.
_MODULES = LIBRARIES | {"numpy"}
_MOST_LEVELS = 8


def package_of(function: FunctionType) -> str:
    """Return the package that contains the code of a function; `functools.wraps` copies other names."""
    return str(function.__globals__.get("__name__", "")).partition(".")[0]


def can_alter(hook: Any) -> bool:
    """Whether a hook can alter values. Those of transformers keep outputs, or are of training."""
    return not (isinstance(hook, FunctionType) and package_of(hook) == "transformers")


class CodeTexts:
    """Makes texts that are equal for equal code in every process.

    The text of a function has its bytecode with its constants, default arguments, values in its closure and
    global values that it reads. Of a function of torch, transformers, accelerate or PEFT it has the name
    instead of the bytecode and the global values. Attributes of modules and classes are not followed. An
    object that is neither a function, a method nor a partial has no text, unless it is a module of the model.

    Parameters
    ----------
    modules
        The modules of the model, whose weights and settings are named elsewhere.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = frozenset(map(id, modules))
        self._numbers: dict[int, int] = {}  # of functions whose text has begun: they may call themselves

    def text(self, function: Any) -> str | None:
        """Return the text of a function; None if the code has none."""
        self._numbers = {}
        return self._text(function, _MOST_LEVELS)

    def _text(self, function: Any, levels: int) -> str | None:
        if not levels:
            return None
        levels -= 1
        if isinstance(function, functools.partial):
            parts = [function.func, *function.args, *sorted(function.keywords.items())]
            return _join("partial", [self._value(part, levels) for part in parts])
        if isinstance(function, MethodType):
            return _join(
                "method", [self._value(function.__self__, levels), self._text(function.__func__, levels)]
            )
        if isinstance(function, nn.Module):
            is_known = id(function) in self._modules
            return f"module {type(function).__module__}.{type(function).__qualname__}" if is_known else None
        if isinstance(function, BuiltinFunctionType):
            names = function.__module__, function.__qualname__
            return None if None in names else ".".join(names)
        if not isinstance(function, FunctionType):
            return None
        if id(function) in self._numbers:
            return f"function {self._numbers[id(function)]}"
        self._numbers[id(function)] = len(self._numbers)
        return self._function(function, levels)

    def _function(self, function: FunctionType, levels: int) -> str | None:
        name = f"{function.__globals__.get('__name__')}.{function.__code__.co_qualname}"
        if name.startswith("torch._dynamo."):  # its closure has the state of the compiler
            original = getattr(function, "_torchdynamo_orig_callable", None)
            return name if original is None else _join(name, [self._value(original, levels)])
        try:
            cells = [cell.cell_contents for cell in function.__closure__ or ()]
        except ValueError:  # a cell has no value yet
            return None
        values = [*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items()), *cells]
        texts: list[str | None] = []
        if package_of(function) not in LIBRARIES:
            texts.append(_code(function.__code__))
            known = function.__globals__
            values += [(name, known[name]) for name in _globals_of(function.__code__) if name in known]
        return _join(name, [*texts, *(self._value(value, levels) for value in values)])

    def _value(self, value: Any, levels: int) -> str | None:
        if isinstance(value, tuple):
            return _join("tuple", [self._value(part, levels) for part in value])
        if isinstance(value, type):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, logging.Logger):
            return "logger"
        if isinstance(value, ModuleType):
            package = value.__name__.partition(".")[0]
            is_known = package in _MODULES or package in sys.stdlib_module_names
            return f"package {value.__name__}" if is_known else None
        text = describe(value, [])
        return self._text(value, levels) if text is None else text


def _globals_of(code: CodeType) -> list[str]:
    """Return the names of global values that a code object reads, with those of the functions in it."""
    names = {
        each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for value in code.co_consts:
        if isinstance(value, CodeType):
            names.update(_globals_of(value))
    return sorted(names)


def _code(code: CodeType) -> str:
    """Return the text of a code object, without its file and its lines."""
    constants = [
        _code(value) if isinstance(value, CodeType) else _constant(value) for value in code.co_consts
    ]
    return f"code({code.co_code.hex()}, {code.co_names}, {', '.join(constants)})"


def _constant(value: Any) -> str:
    return f"frozenset({sorted(map(repr, value))})" if isinstance(value, frozenset) else repr(value)


def _join(name: str, texts: list[str | None]) -> str | None:
    found = [text for text in texts if text is not None]
    return f"{name}({', '.join(found)})" if len(found) == len(texts) else None
