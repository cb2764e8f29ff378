"""Subclasses of vLLM's models for vLLM's `ModelRegistry`, one per architecture of `ARCHITECTURES`.

Each has the name of vLLM's class. It is made when vLLM asks for it, so that a process loads no other model.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from vitcache.adapters.vllm.architectures import ARCHITECTURES, MODELS


class PlacesRows:
    """Makes vLLM use `VitCacheModelState` for a model, if the worker's connector is vitcache's.

    Otherwise the property `get_model_state_cls` does not exist, and vLLM chooses its own model state.
    """

    @property
    def get_model_state_cls(self) -> Any:
        """A function that returns the class of the model state."""
        try:
            state = _find_state(self)
        except AttributeError as error:  # `hasattr` would hide it
            raise RuntimeError(f"vitcache cannot choose the model state of vLLM: {error}") from error
        if state is None:
            raise AttributeError("get_model_state_cls")  # vLLM asks `hasattr`
        return lambda: state


def _find_state(model: Any) -> type | None:
    """Return vitcache's model state; None if vLLM chooses the state of a model itself."""
    from vitcache.adapters.vllm.connector import VitCacheConnector

    connector = VitCacheConnector.of_worker()
    if connector is None or not connector.may_place(model):
        return None
    from vitcache.adapters.vllm.model_state import VitCacheModelState

    return VitCacheModelState


def __getattr__(name: str) -> Any:
    name = name.partition("@")[0]
    if name not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _make_class(name)


@cache
def _make_class(name: str) -> Any:
    module, of_vllm = ARCHITECTURES[name]
    stock = getattr(import_module(f"{MODELS}.{module}"), of_vllm)
    # pickle finds a class by its qualified name, which is that of the registry.
    names = {"__module__": __name__, "__qualname__": name, "__doc__": stock.__doc__}
    return type(of_vllm, (PlacesRows, stock), names)
