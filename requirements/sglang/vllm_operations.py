"""Lets SGLang import the operations of vLLM, which it names on a CPU and does not call.

`make engines` copies this module into .venv-sglang, and a .pth file imports it in every process. If the CPU
has no AMX, SGLang's rotary embedding imports `vllm._custom_ops`, and then computes in torch. This module
makes `vllm` with this one module, which has every name; a call raises RuntimeError. Other modules of vLLM
stay missing, because SGLang would use them.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

MODULES = ("vllm", "vllm._custom_ops")


class Operations(ModuleType):
    """A module in which every name is an operation that is not installed."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: object, **named: object) -> NoReturn:
            raise RuntimeError(f"{self.__name__}.{name} was called, and .venv-sglang has no vLLM")

        return call


class OperationsFinder:
    """Finds the two modules."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, OperationsFinder, is_package=True) if name in MODULES else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        return Operations(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """The module is complete."""


sys.meta_path.append(OperationsFinder)
