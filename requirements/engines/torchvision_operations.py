"""Lets PyPI's torchvision, which is built for CUDA, be imported with a torch that is built for the CPU.

`make engines` copies this module into .venv-vllm and .venv-sglang, and a .pth file imports it in every
process. torchvision registers fake kernels for two operations of its compiled library. If that library
cannot be loaded, the operations do not exist and the import fails. This module defines their schemas just
before torchvision is imported. Image processors import torchvision; no test calls these operations. `make
test` loads this module as a plugin of pytest, for the tests of image processors that need torchvision.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries = []  # torch removes the operations of a library that is collected


class BeforeTorchvision:
    """Finds no module: it sees the first import of torchvision."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(BeforeTorchvision)
        spec = PathFinder.find_spec(name)
        if spec is not None and is_for_cuda(spec):
            define_operations()


def is_for_cuda(spec: ModuleSpec) -> bool:
    """Tell whether torchvision is built for CUDA: its version then ends with `+cu` and a number."""
    return "+cu" in (Path(str(spec.origin)).parent / "version.py").read_text()


def define_operations() -> None:
    import torch

    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "DEF")
        for operation in ("nms", "qnms"):
            library.define(operation + SCHEMA)
        _libraries.append(library)


sys.meta_path.insert(0, BeforeTorchvision)
