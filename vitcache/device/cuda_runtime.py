"""Finds and opens the CUDA runtime of this process. A CUDA toolkit is not needed."""

from __future__ import annotations

import site
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitcache._native import CudaRuntime


def open_cuda_runtime() -> CudaRuntime:
    """Open the CUDA runtime that this process has loaded. If it has loaded none, open an installed one.

    If no CUDA runtime is found, `available` of the returned object is False and `searched` lists the places.

    Raises
    ------
    ImportError
        If the native module was not built.
    """
    # Imported here: content keys import this module, and must work without the native module.
    from vitcache._native import CudaRuntime

    return CudaRuntime(cuda_runtime_directories())


def cuda_runtime_directories() -> list[str]:
    """Return the folders in which NVIDIA's wheels install the CUDA runtime. Does not import torch.

    The wheels are searched in the folder of torch, if it is imported, and in the site folders of this Python.
    `sys.path` is not searched: it has the working directory, whose files may belong to another user.
    """
    found = [
        root / "nvidia" / package / "lib" for root in _site_folders() for package in ("cu13", "cuda_runtime")
    ]
    return [str(directory) for directory in found if directory.is_dir()]


def _site_folders() -> list[Path]:
    """Return the absolute folders of installed packages, each once: torch's first."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    torch_file = getattr(sys.modules.get("torch"), "__file__", None)
    if torch_file:
        folders.insert(0, str(Path(torch_file).parent.parent))
    return [folder for folder in dict.fromkeys(map(Path, folders)) if folder.is_absolute()]
