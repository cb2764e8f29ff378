"""A stand-in for a `triton.jit` function: it records compiles and launches, and runs nothing."""

from __future__ import annotations

from typing import Any, NamedTuple


class Parameter(NamedTuple):
    """A parameter of a kernel."""

    is_constexpr: bool


class Compiled:
    """A compiled kernel. `run` loads its module, as in Triton."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, owner: FakeFunction) -> None:
        self.owner, self.is_loaded = owner, False

    @property
    def run(self) -> Any:
        self.is_loaded = True
        return lambda *arguments: self.owner.direct.append(arguments)


class FakeFunction:
    """A function of `num_arguments` numbers and of constants."""

    def __init__(self, num_arguments: int) -> None:
        self.params = [Parameter(False)] * num_arguments + [Parameter(True)]
        self.pre_run_hooks: list[Any] = []
        self.compiled: list[tuple[Compiled, dict[str, Any]]] = []
        self.direct: list[tuple[Any, ...]] = []  # launches without the binder
        self.bound: list[tuple[Any, ...]] = []  # launches through the binder

    def warmup(self, *arguments: int, grid: Any, num_warps: int, **constants: Any) -> Compiled:
        assert len(arguments) == sum(not param.is_constexpr for param in self.params)
        compiled = Compiled(self)
        self.compiled.append((compiled, {"num_warps": num_warps, **constants}))
        return compiled

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **constants: self.bound.append((grid, arguments, constants))


class Driver:
    """Triton's active driver: its current stream is 7."""

    @property
    def active(self) -> Driver:
        return self

    def get_current_stream(self, device: int | None) -> int:
        return 7
