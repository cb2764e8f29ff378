"""Ranges around the work of a step: `vitcache.key`, `vitcache.copy`, `vitcache.encode` and `vitcache.place`.

While tracing is on, `torch.profiler` shows each range, and so does Nsight Systems (NVTX) if CUDA is in use.
While it is off, the traced functions are the plain functions: a call enters no further frame.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from vitcache.device.locks import new_lock

VARIABLE = "VITCACHE_TRACE"
PREFIX = "vitcache."

F = TypeVar("F", bound=Callable[..., Any])


class _Traced(NamedTuple):
    """A function in its two forms: as it was written, and inside of a range."""

    plain: Callable[..., Any]
    in_range: Callable[..., Any]


class _Thread(threading.local):
    """The names of the ranges that the thread is in."""

    def __init__(self) -> None:
        self.names: set[str] = set()


_functions: list[_Traced] = []
_thread = _Thread()
_lock = new_lock()
_is_on = os.environ.get(VARIABLE, "") not in ("", "0")
_is_wanted = _is_on


def enable() -> None:
    """Open a range around the work of each step from now on, in all threads.

    The environment variable ``VITCACHE_TRACE=1`` does the same when vitcache is imported. A second call does
    nothing.

    Notes
    -----
    Any thread may call. A call of vitcache that runs now stays as it is. The host's time of a range is that
    of its function. Work on a GPU that the function queues may run later; profilers link it to the range.

    The ranges: ``vitcache.key``, the keys of the items of a step; ``vitcache.copy``, the start of the copy of
    one feature to the device, or of the loads from the host tier; ``vitcache.encode``, one call of the vision
    tower; ``vitcache.place``, one launch that writes rows to `inputs_embeds` or to the features of a model. A
    range inside of a range of the same name is left out.

    Examples
    --------
    >>> import torch
    >>> from vitcache import scatter_embeddings, tracing
    >>> tracing.enable()
    >>> with torch.profiler.profile() as profile:
    ...     _ = scatter_embeddings(torch.zeros(3, 2), [torch.ones(1, 2)], [1])
    >>> tracing.disable()
    >>> [event.key for event in profile.key_averages() if event.key.startswith("vitcache.")]
    ['vitcache.place']
    """
    _switch(True)


def disable() -> None:
    """Open no more ranges. A second call does nothing. Any thread may call.

    Examples
    --------
    >>> from vitcache import tracing
    >>> tracing.disable()
    >>> tracing.is_enabled()
    False
    """
    _switch(False)


def is_enabled() -> bool:
    """Whether ranges are opened.

    Examples
    --------
    >>> from vitcache import tracing
    >>> tracing.enable()
    >>> tracing.is_enabled()
    True
    >>> tracing.disable()
    """
    return _is_on


def traced(name: str) -> Callable[[F], F]:
    """Mark a function or method whose calls are one range each while tracing is on.

    Parameters
    ----------
    name
        ``"key"``, ``"copy"``, ``"encode"`` or ``"place"``.
    """

    def mark(function: F) -> F:
        made = _Traced(function, _in_range(function, PREFIX + name))
        with _lock:
            _functions.append(made)
            return made.in_range if _is_on else function  # type: ignore[return-value]

    return mark


def _switch(is_on: bool) -> None:
    global _is_on, _is_wanted
    with _lock:
        _is_wanted = is_on
        # As long as `_is_on` is false, no function opens a range: an interrupted call leaves tracing off.
        _is_on = _is_on and is_on
        while True:
            wanted = _is_wanted
            for plain, in_range in _functions:
                _replace(*((plain, in_range) if wanted else (in_range, plain)))
            if wanted is _is_wanted:  # else a signal handler switched: the last call decides
                break
        _is_on = _is_wanted


def _replace(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Put a function in the place of another one: in its class, or in each module that has imported it."""
    *class_names, name = old.__qualname__.split(".")
    if class_names:
        # None: the import of the module has not reached the end of the class, or it failed.
        owners = [getattr(sys.modules.get(old.__module__), class_names[0], None)]
    else:
        owners = [module for path, module in list(sys.modules.items()) if path.startswith(PREFIX)]
    for owner in owners:
        if owner is not None and vars(owner).get(name) is old:
            setattr(owner, name, new)


def _in_range(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function that runs `function` in a range."""

    @functools.wraps(function)
    def run_in_range(*args: Any, **kwargs: Any) -> Any:
        names = _thread.names
        # Off: the caller took the bound method, or imported the function, while tracing was on.
        if name in names or not _is_on:
            return function(*args, **kwargs)
        import torch  # `vitcache` is imported before torch

        has_nvtx = torch.cuda.is_initialized()
        try:
            names.add(name)
            with torch.profiler.record_function(name):
                if not has_nvtx:
                    return function(*args, **kwargs)
                torch.cuda.nvtx.range_push(name)
                try:
                    return function(*args, **kwargs)
                finally:
                    torch.cuda.nvtx.range_pop()
        finally:
            names.discard(name)

    return run_in_range
