"""Both row kernels with a stand-in for Triton: they record each compile and launch, and run nothing."""

from __future__ import annotations

import pytest
from fake_triton import Driver, FakeFunction

from vitcache.placement import dispatch
from vitcache.triton_kernels import launch
from vitcache.triton_kernels.embed_rows import ARGUMENTS as EMBED_ARGUMENTS
from vitcache.triton_kernels.embed_rows import embed_kernel
from vitcache.triton_kernels.launch import Variant
from vitcache.triton_kernels.scatter_rows import ARGUMENTS as SCATTER_ARGUMENTS
from vitcache.triton_kernels.scatter_rows import scatter_kernel

KERNELS = ((scatter_kernel, SCATTER_ARGUMENTS), (embed_kernel, EMBED_ARGUMENTS))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the kernels as if the CPU's tensors were those of a GPU. No variant is loaded."""
    monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)
    monkeypatch.setattr(launch, "driver", Driver())
    for kernel, arguments in KERNELS:
        monkeypatch.setattr(kernel, "_function", FakeFunction(len(arguments)))
        monkeypatch.setattr(kernel, "_is_compiled", True)
        monkeypatch.setattr(kernel, "_num_arguments", len(arguments))
        monkeypatch.setattr(kernel, "_loaded", {})


def loaded() -> set[Variant]:
    """The variants that are loaded."""
    return {variant for kernel, _ in KERNELS for variant in kernel.variants}
