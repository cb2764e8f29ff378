"""Finds vitcache.bench and vitcache.triton_kernels for a Python that is started in the root of the checkout.

Such a Python finds the folder vitcache/ before the editable install, and the two packages are beside that
folder. setup.py links this module into build/editable, and a .pth file of the editable install imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = "vitcache.bench", "vitcache.triton_kernels"
LINKS = str(Path(__file__).absolute().parent / "vitcache")


class CheckoutFinder:
    """The last finder of `sys.meta_path`: Python asks it only for modules that no other finder has found."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of one of the two packages in the folder of links, and None for other names."""
        return PathFinder.find_spec(name, [LINKS], target) if name in PACKAGES else None


sys.meta_path.append(CheckoutFinder)
