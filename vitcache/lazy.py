"""Lazy names: a package imports a name from its defining module when the name is first used.

So the first use of a name loads only its module and the imports of that module. For example, `Span` does not
load the native module, and the eviction policies do not load torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, Sequence[str]], submodules: Sequence[str] = ()
) -> Callable[[str], Any]:
    """Return a module-level `__getattr__` for a package.

    Parameters
    ----------
    package
        Name of the package.
    names
        Maps each defining module to the names that the package imports from it.
    submodules
        Names of modules in the package that callers use as attributes of it.
    """
    modules = {name: module for module, defined in names.items() for name in defined}

    def get(name: str) -> Any:
        if name in submodules:
            return import_module(f"{package}.{name}")
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get
