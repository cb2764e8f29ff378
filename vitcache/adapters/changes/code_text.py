"""`code_text`: a text that names a function in every process, of which a module's rows may depend."""

from __future__ import annotations

import functools
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from vitcache.adapters.changes.settings import describe

# Functions of these packages are named, and not read: the versions of the packages stand for their code.
_LIBRARIES = ("torch.", "transformers.", "accelerate.", "peft.")
_MOST_LEVELS = 8


def code_text(function: Any, levels: int = _MOST_LEVELS) -> str | None:
    """Return a text that is equal for equal code in every process; None if the code has none.

    The text has the bytecode of a function with its constants, default arguments and values in its closure.
    Of a function of torch, transformers, accelerate or PEFT it has the name. Global names that a function
    reads are not followed. An object that is neither a function, a method, a partial nor a module has no
    text.
    """
    if not levels:
        return None
    if isinstance(function, functools.partial):
        parts = [function.func, *function.args, *sorted(function.keywords.items())]
        return _join("partial", [_value_text(part, levels - 1) for part in parts])
    if isinstance(function, MethodType):
        return _join("method", [_value_text(function.__self__, levels - 1), code_text(function.__func__)])
    if isinstance(function, nn.Module):
        return f"module {type(function).__module__}.{type(function).__qualname__}"
    name = f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', None)}"
    if isinstance(function, BuiltinFunctionType) or name.startswith(_LIBRARIES):
        return None if name.startswith("None.") or name.endswith(".None") else name
    if not isinstance(function, FunctionType):
        return None
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    values = [*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items()), *cells]
    return _join(name, [_code(function.__code__), *(_value_text(value, levels - 1) for value in values)])


def _value_text(value: Any, levels: int) -> str | None:
    if isinstance(value, tuple):
        return _join("tuple", [_value_text(part, levels) for part in value])
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    text = describe(value, [])
    return code_text(value, levels) if text is None else text


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
