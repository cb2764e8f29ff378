"""`find_owner`: the module whose forward calls its own `get_image_features`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import Any

from torch import nn

MODALITIES = ("image", "video", "audio")


def method_name(modality: str) -> str:
    """Return the name of the stock method that encodes items of a modality."""
    return f"get_{modality}_features"


def find_owner(model: nn.Module) -> Any | None:
    """Return the module in which the stock methods must be replaced, so that the model's forward calls ours.

    This is usually the base model. It is the head in Llama 4, and the encoder of an encoder-decoder. A method
    that no other method of its class calls only passes calls on.
    """
    base = getattr(model, "base_model", model)
    for module in (base, model, *model.modules()):
        if any(serves(module, modality) for modality in MODALITIES):
            return module
    return None


def serves(module: Any, modality: str) -> bool:
    """Whether the module has the stock method of a modality, and another method of it calls that method."""
    name = method_name(modality)
    cls: Any = type(module)
    return callable(getattr(module, name, None)) and _is_called(cls, name)


def option_names(owner: nn.Module) -> set[str]:
    """Return the names of the arguments of the stock methods. None stands for the config's value."""
    methods = (getattr(type(owner), method_name(modality), None) for modality in MODALITIES)
    return {name for method in methods if method is not None for name in inspect.signature(method).parameters}


def has_tower(owner: Any, name: str) -> bool:
    """Whether a model was made with a tower: a config may leave one out."""
    return isinstance(getattr(owner, name, None), nn.Module)


def tower_names(owner: nn.Module) -> list[str]:
    """Return the names of the children with weights that do not belong to the language model."""
    language_model = find_language_model(owner)
    return [
        name
        for name, child in owner.named_children()
        if child is not language_model and any(True for _ in child.parameters())
    ]


def find_language_model(owner: nn.Module) -> nn.Module | None:
    """Return the child that has the embedding of the text tokens. None: no child has it."""
    named = owner._modules.get("language_model")
    if named is not None:
        return named
    try:
        embedding = owner.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    for child in owner.children():
        if any(module is embedding for module in child.modules()):
            return child
    return None


@lru_cache(maxsize=256)
def _is_called(cls: type, name: str) -> bool:
    return any(name in code.co_names for code in codes_of(cls))


def codes_of(cls: type) -> Iterator[CodeType]:
    """Yield the code of the methods of a class, except those that encode items.

    A method that was overridden is included only if the class uses `super()` in the method that replaced it.
    """
    overridden = {method_name(modality) for modality in MODALITIES}
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for name, value in vars(base).items():
            if name in overridden or not callable(value) or isinstance(value, type):
                continue
            codes = list(_nested(getattr(inspect.unwrap(value), "__code__", None)))
            yield from codes
            if not any("super" in code.co_names for code in codes):
                overridden.add(name)


def _nested(code: CodeType | None) -> Iterator[CodeType]:
    if code is None:
        return
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
