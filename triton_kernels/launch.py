"""Launch a row kernel: keep the compiled kernel of each variant, and launch it without Triton's binder.

Triton's binder takes longer than the rest of a launch: for each launch it inspects every argument, to find
the compiled kernel that is specialized for them. The row kernels specialize on constants alone. So a variant,
which is the tuple of these constants, names one compiled kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import triton
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# The versions of Triton whose compiled kernels tests have launched without the binder.
TESTED_VERSIONS = frozenset({(3, 6), (3, 9)})

IS_TESTED = tuple(int(part) for part in triton.__version__.split(".")[:2]) in TESTED_VERSIONS


class Variant(Protocol):
    """The constants of one compiled kernel: a named tuple whose first field is the index of the device."""

    @property
    def device(self) -> int | None:
        """The index of the device."""

    def constants(self) -> dict[str, Any]:
        """The kernel's constants by name, in the order of its signature."""

    @property
    def num_warps(self) -> int:
        """Warps per program."""


def _guard(variant: Variant) -> AbstractContextManager[object]:
    return nullcontext()


class RowKernel:
    """A Triton kernel, and its compiled kernels by variant.

    Parameters
    ----------
    function
        A function with `triton.jit`. Its arguments are 64-bit integers and floats, which are not specialized,
        and then the constants.

    Notes
    -----
    Any thread may call. If two threads load one variant at the same time, both compile it, and one of the two
    equal compiled kernels is kept.
    """

    def __init__(self, function: Any) -> None:
        self._function = function
        self._is_compiled = isinstance(function, JITFunction)  # False: Triton interprets it
        self._num_arguments = sum(not param.is_constexpr for param in getattr(function, "params", ()))
        # By variant: the compiled kernel, and the constants that follow the arguments in a launch.
        self._loaded: dict[Variant, tuple[Any, tuple[Any, ...]]] = {}
        # Entered while a variant is compiled and loaded. It may raise: then nothing is loaded.
        self.guard: Callable[[Variant], AbstractContextManager[object]] = _guard

    @property
    def variants(self) -> list[Variant]:
        """The variants that are loaded."""
        return list(self._loaded)

    def load(self, variant: Variant) -> tuple[Any, tuple[Any, ...]] | None:
        """Compile and load a variant on the current device, without a launch.

        Returns the compiled kernel and its constants, or None if Triton interprets the kernel.
        """
        loaded = self._loaded.get(variant)
        if loaded is None and self._is_compiled:
            with self.guard(variant):
                constants = variant.constants()
                compiled = self._function.warmup(
                    *(1,) * self._num_arguments, grid=(1,), num_warps=variant.num_warps, **constants
                )
                compiled.run  # noqa: B018 - the property loads the module
            loaded = self._loaded.setdefault(variant, (compiled, tuple(constants.values())))
        return loaded

    def launch(
        self, variant: Variant, grid: tuple[int, int, int], arguments: tuple[int | float, ...]
    ) -> None:
        """Queue one launch on the current stream of the current device. The first launch loads the variant.

        Parameters
        ----------
        grid
            Number of programs in each dimension, none of them 0.
        arguments
            The kernel's arguments without the constants. The caller keeps the memory alive.
        """
        loaded = self._loaded.get(variant) or self.load(variant)
        if loaded is None or not IS_TESTED or _has_hooks(self._function):
            self._function[grid](*arguments, num_warps=variant.num_warps, **variant.constants())
            return
        compiled, constants = loaded
        stream = driver.active.get_current_stream(variant.device)
        compiled.run(
            *grid,
            stream,
            compiled.function,
            compiled.packed_metadata,
            None,
            None,
            None,
            *arguments,
            *constants,
        )


def _has_hooks(function: Any) -> bool:
    """Whether a hook of Triton must be called at a launch."""
    runtime = knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        if hook is not None and getattr(hook, "calls", True):
            return True
    return bool(function.pre_run_hooks)
