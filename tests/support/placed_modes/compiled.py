"""Modes with a compiled language model, in the three ways that users compile it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from tiny_family import Call
from torch import Tensor

from placed_modes.side import Mode, Side

WHOLE: Call = {"backend": "eager", "fullgraph": True}
"""One graph, whose operations are those of the model that is not compiled."""


def _language_model(side: Side) -> tuple[Any, str]:
    """The module that calls the language model, and the name of the language model in it."""
    owner = side.zoo.features_owner(side.model)
    return owner, next(name for name in ("language_model", "text_model") if hasattr(owner, name))


@contextmanager
def _replaced(side: Side) -> Iterator[None]:
    owner, name = _language_model(side)
    stock = getattr(owner, name)
    setattr(owner, name, torch.compile(stock, **WHOLE))
    try:
        yield
    finally:
        setattr(owner, name, stock)


@contextmanager
def _in_place(side: Side) -> Iterator[None]:
    owner, name = _language_model(side)
    module = getattr(owner, name)
    module.compile(**WHOLE)
    try:
        yield
    finally:
        module._compiled_call_impl = None


@contextmanager
def _forward(side: Side) -> Iterator[None]:
    owner, name = _language_model(side)
    module = getattr(owner, name)
    module.forward = torch.compile(module.forward, **WHOLE)
    try:
        yield
    finally:
        del module.forward


def _logits(compiled: Callable[[Side], AbstractContextManager[None]]) -> Mode:
    def run(side: Side) -> list[Tensor]:
        with compiled(side):
            return [side.logits(side.images(0, 1))]

    return run


def _generate(side: Side) -> list[Tensor]:
    with _replaced(side):
        return side.generate(side.images(0, 1), max_new_tokens=1)


COMPILED: dict[str, Mode] = {
    "compiled language model": _logits(_replaced),
    "language model compiled in place": _logits(_in_place),
    "compiled forward of the language model": _logits(_forward),
    "generate with a compiled language model": _generate,
}
