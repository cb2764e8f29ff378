"""Lets SGLang, whose kernels are for CUDA, be imported on a CPU.

`make engines` copies this module into .venv-sglang, and a .pth file imports it in every process. Modules of
SGLang import names of `sgl_kernel` and, on a CPU, of `vllm._custom_ops`, and call them on other devices and for
other models only. This module makes these packages: they have every name, and a call of one raises
RuntimeError. Other modules of `vllm` stay missing, because SGLang would use them.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

KERNELS = "sgl_kernel"
PACKAGES = (KERNELS, "vllm", "vllm._custom_ops")


class Kernel:
    """A name of a package that is not installed: a function, or a namespace of functions."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> "Kernel":
        if name.startswith("__"):
            raise AttributeError(name)
        return Kernel(f"{self._name}.{name}")

    def __call__(self, *arguments: object, **named: object) -> NoReturn:
        raise RuntimeError(f"{self._name} is not installed in .venv-sglang: it is for CUDA")


class KernelModule(ModuleType):
    """A module in which every name is a kernel."""

    def __getattr__(self, name: str) -> Kernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return Kernel(f"{self.__name__}.{name}")


class KernelFinder:
    """Finds the packages, and makes a module for each."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name in PACKAGES or name.startswith(f"{KERNELS}."):
            return ModuleSpec(name, KernelFinder, is_package=True)
        return None

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        return KernelModule(spec.name)

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """The module is complete."""


sys.meta_path.append(KernelFinder)
