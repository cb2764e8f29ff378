"""A kernel is compiled once per variant, and then launched without the binder where that was tested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from fake_triton import Driver, FakeFunction

pytest.importorskip("triton")

import triton

from vitcache import versions
from vitcache.triton_kernels import launch
from vitcache.triton_kernels.launch import RowKernel, Variant

pytestmark = pytest.mark.triton


class ExampleVariant(NamedTuple):
    device: int | None
    width: int

    def constants(self) -> dict[str, Any]:
        return {"WIDTH": self.width}

    @property
    def num_warps(self) -> int:
        return 4


FIRST, SECOND = ExampleVariant(None, 8), ExampleVariant(None, 16)


@pytest.fixture
def function() -> FakeFunction:
    return FakeFunction(num_arguments=2)


@pytest.fixture
def kernel(function: FakeFunction, monkeypatch: pytest.MonkeyPatch) -> RowKernel:
    monkeypatch.setattr(launch, "driver", Driver())
    monkeypatch.setattr(launch, "JITFunction", FakeFunction)
    monkeypatch.setattr(launch, "IS_TESTED", True)  # with each supported Triton, as the function is a fake
    return RowKernel(function)


def test_launch_compiles_once_per_variant_and_skips_the_binder(
    kernel: RowKernel, function: FakeFunction
) -> None:
    for variant in (FIRST, FIRST, SECOND, FIRST):
        kernel.launch(variant, (3, 2, 1), (10, 20))
    assert [constants for _, constants in function.compiled] == [
        {"num_warps": 4, "WIDTH": 8},
        {"num_warps": 4, "WIDTH": 16},
    ]
    assert kernel.variants == [FIRST, SECOND]
    assert function.bound == []
    head = 3, 2, 1, 7, "function", "metadata", None, None, None, 10, 20
    assert function.direct == [(*head, 8), (*head, 8), (*head, 16), (*head, 8)]


def test_load_compiles_and_loads_without_a_launch(kernel: RowKernel, function: FakeFunction) -> None:
    kernel.load(FIRST)
    kernel.load(FIRST)
    assert [compiled.is_loaded for compiled, _ in function.compiled] == [True]
    assert function.direct == function.bound == []


def test_launch_with_an_untested_triton_uses_the_binder(
    kernel: RowKernel, function: FakeFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "IS_TESTED", False)
    kernel.launch(FIRST, (3, 2, 1), (10, 20))
    assert function.direct == []
    assert function.bound == [((3, 2, 1), (10, 20), {"num_warps": 4, "WIDTH": 8})]


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_launch_with_a_hook_of_triton_uses_the_binder(
    kernel: RowKernel, function: FakeFunction, name: str
) -> None:
    hooks, hook = getattr(triton.knobs.runtime, name), lambda metadata: None
    hooks.add(hook)
    try:
        kernel.launch(FIRST, (1, 1, 1), (10, 20))
    finally:
        hooks.remove(hook)
    kernel.launch(FIRST, (1, 1, 1), (10, 20))
    assert (len(function.bound), len(function.direct)) == (1, 1)


def test_launch_with_a_hook_that_is_a_function_uses_the_binder(
    kernel: RowKernel, function: FakeFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", lambda metadata: None)
    kernel.launch(FIRST, (1, 1, 1), (10, 20))
    assert (len(function.bound), len(function.direct)) == (1, 0)


def test_launch_with_a_pre_run_hook_uses_the_binder(kernel: RowKernel, function: FakeFunction) -> None:
    function.pre_run_hooks.append(lambda *arguments, **constants: None)
    kernel.launch(FIRST, (1, 1, 1), (10, 20))
    assert (len(function.bound), len(function.direct)) == (1, 0)


def test_launch_that_is_interpreted_compiles_nothing(
    function: FakeFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = RowKernel(function)  # no JITFunction of Triton
    kernel.launch(FIRST, (1, 1, 1), (10, 20))
    assert kernel.load(FIRST) is None
    assert (len(function.bound), function.compiled, kernel.variants) == (1, [], [])


def test_load_that_the_guard_refuses_loads_nothing(kernel: RowKernel, function: FakeFunction) -> None:
    entered: list[Variant] = []

    @contextmanager
    def refuse(variant: Variant) -> Iterator[None]:
        entered.append(variant)
        raise RuntimeError("not now")
        yield

    kernel.guard, guard = refuse, kernel.guard
    with pytest.raises(RuntimeError, match="not now"):
        kernel.launch(FIRST, (1, 1, 1), (10, 20))
    assert (entered, kernel.variants, function.compiled) == ([FIRST], [], [])
    kernel.guard = guard
    kernel.launch(FIRST, (1, 1, 1), (10, 20))
    assert len(function.direct) == 1


def test_tested_versions_contain_the_installed_triton() -> None:
    """If this fails, run the tests of tests/gpu with this version of Triton on a GPU, and then add it.

    The first supported version, which torch 2.9 brings, is launched through the binder.
    """
    installed = versions.major_minor(triton.__version__)
    first = versions.major_minor(versions.SUPPORTED["triton"][0])
    assert launch.IS_TESTED is (installed != first), triton.__version__
