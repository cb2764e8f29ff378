"""`invalidate_after`: calls functions such as `Attachment.invalidate` after each call of a method."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from types import FunctionType, MethodType
from typing import Any

_MISSING = object()


def invalidate_after(owner: Any, name: str, *invalidate: Callable[[], Any]) -> Invalidation:
    """Call functions after each call of the method `owner.name`, also after a call that raises.

    Use it for methods that write weights in a way that `attach` cannot notice, for example through `.data`.

    Parameters
    ----------
    owner
        The object that has the method, a class or a module. For a class, all of its instances are included.
        The attribute `name` of `owner` is replaced, so `owner` keeps the functions alive. A deep copy of
        `owner` calls its own method, and then the same functions.
    name
        The name of a method, static method, class method or function. If it is a coroutine function, the
        functions are called when its result was awaited. If it returns a future, they are called when the
        future is done, in the thread that completes it.
    invalidate
        Functions without arguments, such as ``attachment.invalidate``, ``cache.advance_epoch`` or vLLM's
        ``llm.llm_engine.reset_encoder_cache``. They are called in this order, by the thread that called the
        method. If one raises, the next ones are called, too, and the call of the method raises. Coroutine
        functions are awaited; then the method must be a coroutine function, too.

    Returns
    -------
    Invalidation
        A handle: `remove` ends the calls.

    Raises
    ------
    TypeError
        If `name` is not a str; if `invalidate` is empty or has an object that is not callable; if the
        attribute is not callable, is a generator function, or cannot be replaced; if the name is one such as
        ``__call__``, which Python looks up in the class of `owner`.
    AttributeError
        If `owner` has no attribute `name`.

    Notes
    -----
    The methods of TRL 1.16.0 that write weights:

    - `VLLMGeneration.sync_weights`, the object `trainer.vllm_generation` of GRPO and RLOO: it copies the
      policy to vLLM, and then resets only vLLM's prefix cache;
    - the static method `SyncRefModelCallback.sync_target_model`: it writes a reference model through `.data`.

    Any thread may call `invalidate_after`.

    Examples
    --------
    `model` is a Qwen2.5-VL in eval mode. `inputs` are the outputs of its processor.
    The prompt has one image.

    >>> import torch, vitcache
    >>> class Teacher:
    ...     def sync_weights(self):
    ...         for weight in model.model.visual.parameters():
    ...             weight.data.mul_(0.5)  # `attach` cannot notice a write through `.data`
    >>> teacher, attachment = Teacher(), vitcache.attach(model)
    >>> handle = vitcache.invalidate_after(teacher, "sync_weights", attachment.invalidate)
    >>> with torch.no_grad():
    ...     output = model(**inputs)
    ...     teacher.sync_weights()
    ...     output = model(**inputs)
    >>> attachment.stats().encoded
    2
    >>> handle.remove()
    >>> attachment.detach()
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got {type(name).__name__}")
    if not invalidate:
        raise TypeError("invalidate_after needs a function to call, such as attachment.invalidate")
    for function in invalidate:
        if not callable(function):
            raise TypeError(
                f"invalidate must have functions such as attachment.invalidate, got {type(function).__name__}"
            )
    described = f"{name} of {getattr(owner, '__name__', type(owner).__name__)}"
    method = getattr(owner, name, _MISSING)
    if method is _MISSING:
        raise AttributeError(f"{described} does not exist")
    if not callable(method):
        raise TypeError(f"{described} is a {type(method).__name__}, not a method")
    if inspect.isgeneratorfunction(method) or inspect.isasyncgenfunction(method):
        raise TypeError(f"{described} is a generator function: its calls return before its code runs")
    if not inspect.iscoroutinefunction(method) and any(map(inspect.iscoroutinefunction, invalidate)):
        raise TypeError(f"{described} is not a coroutine function, so it cannot await those of invalidate")
    if name.startswith("__") and not isinstance(owner, type):
        raise TypeError(f"Python looks up {name} in the class: give {type(owner).__name__} as owner")
    try:
        return Invalidation(owner, name, method, invalidate)
    except (AttributeError, TypeError) as error:  # for example, of an extension type
        raise TypeError(f"{described} cannot be replaced: {error}") from error


class Invalidation:
    """The handle that `invalidate_after` returns. Any thread may use it."""

    def __init__(
        self, owner: Any, name: str, method: Callable[..., Any], functions: tuple[Callable[[], Any], ...]
    ) -> None:
        self._owner = owner
        self._name = name
        self._functions = functions
        self._earlier = vars(owner).get(name, _MISSING)
        self._replacement = self._replace(method)
        setattr(owner, name, self._replacement)

    def remove(self) -> None:
        """Call the functions no more, and restore the method. A second call does nothing.

        If the method was replaced again since, the newer replacement stays.
        """
        self._functions = ()
        if vars(self._owner).get(self._name) is not self._replacement:
            return
        if self._earlier is _MISSING:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._earlier)

    def _replace(self, method: Callable[..., Any]) -> Any:
        """Return the new attribute of the owner. `method` is the attribute as `getattr` returns it."""
        owner, is_class = self._owner, isinstance(self._owner, type)
        found = self._earlier
        for base in (owner if is_class else type(owner)).__mro__:
            if found is _MISSING:
                found = vars(base).get(self._name, _MISSING)
        if is_class:
            if isinstance(found, staticmethod | classmethod):
                return type(found)(self._wrap(found.__func__))
            # A function binds itself to an instance. Other callable objects, such as a partial, do not.
            return self._wrap(found) if hasattr(type(found), "__get__") else staticmethod(self._wrap(method))
        if isinstance(found, MethodType) and found.__self__ is owner:
            found = found.__func__  # of an earlier call of `invalidate_after`
        elif self._earlier is not _MISSING or not isinstance(found, FunctionType):
            return self._wrap(method)
        return MethodType(self._wrap(found), owner)  # `copy.deepcopy` binds it to the copy of the owner

    def _wrap(self, method: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(method):

            @functools.wraps(method)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                return await self._finish(method(*args, **kwargs))

            return run_async

        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                result = method(*args, **kwargs)
            except BaseException:
                self._call()
                raise
            if inspect.iscoroutine(result):
                return self._finish(result)
            if hasattr(result, "add_done_callback"):
                result.add_done_callback(lambda _: self._call())
            else:
                self._call()
            return result

        return run

    def _call(self, first: int = 0) -> None:
        """Call all functions from the `first` one on, also if a function or a signal handler raises."""
        if first < len(self._functions):
            try:
                self._functions[first]()
            finally:
                self._call(first + 1)

    async def _finish(self, result: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await result
        finally:
            async with AsyncExitStack() as stack:
                for function in reversed(self._functions):
                    if inspect.iscoroutinefunction(function):
                        stack.push_async_callback(function)
                    else:
                        stack.callback(function)
