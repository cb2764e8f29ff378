"""Switches the hooks of vitcache on and off in one process."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from sglang.srt.managers import mm_schedule
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.runtime_context import get_context

import vitcache.adapters.sglang as adapter
from vitcache.adapters.sglang import service
from vitcache.adapters.sglang.engine_modules import server_arguments
from vitcache.adapters.sglang.loaded_weights import LOADED
from vitcache.adapters.sglang.options import VARIABLE
from vitcache.adapters.sglang.start_up import HOOKED
from vitcache.adapters.sglang.targets import Target

MiB = 1 << 20
DEFAULT_BYTES = 4 * MiB


class Binding(NamedTuple):
    """A name of a module or class that refers to a function of SGLang, and the function with its hook."""

    owner: Any
    name: str
    original: Any
    hooked: Any


@cache
def bindings() -> list[Binding]:
    """Apply the hooks once as SGLang does, and find each name that they have changed.

    Other tests of this process may apply hooks, too: each of them finds the registry empty.
    """
    for target in HOOKED:
        importlib.import_module(target.module)
        setattr(owner_of(target), target.name.split(".")[-1], inspect.unwrap(target.find()))
    if server_arguments() is None:  # ranks have installed theirs
        get_context().override_server_args(tp_size=1).install()
    HookRegistry.reset()
    adapter.register()
    HookRegistry.apply_hooks()
    HookRegistry.reset()
    hooked = {id(target.find()) for target in HOOKED}
    owners = [module for module in list(sys.modules.values()) if module is not None]
    owners += [owner_of(target) for target in HOOKED if "." in target.name]
    return [
        Binding(owner, name, value.__wrapped__, value)
        for owner in {id(owner): owner for owner in owners}.values()
        for name, value in list(vars(owner).items())
        if id(value) in hooked
    ]


def owner_of(target: Target) -> Any:
    """The class or module of a target."""
    return pkgutil.resolve_name(target.path.rpartition(".")[0])


def switch(is_on: bool) -> None:
    """Let SGLang's names refer to the hooked functions, or to its own."""
    for owner, name, original, hooked in bindings():
        setattr(owner, name, hooked if is_on else original)


@contextmanager
def stock(num_bytes: int = DEFAULT_BYTES) -> Iterator[None]:
    """SGLang as it was released, with a cache of `num_bytes`."""
    switch(is_on=False)
    mm_schedule.init_mm_embedding_cache(num_bytes)
    with poisoned_memory():
        yield


@contextmanager
def plugged(num_bytes: int = DEFAULT_BYTES, **options: Any) -> Iterator[None]:
    """SGLang with the plug-in and its options, as in a new process whose SGLang reserves `num_bytes`."""
    service.SERVICE = service.Service()
    LOADED.are_original = True
    os.environ[VARIABLE] = json.dumps(options)
    switch(is_on=True)
    try:
        mm_schedule.init_mm_embedding_cache(num_bytes)
        with poisoned_memory():
            yield
    finally:
        switch(is_on=False)
        os.environ.pop(VARIABLE, None)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Let torch fill the memory that it allocates with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
