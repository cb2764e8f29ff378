"""`LateHooks`: hooks modules of SGLang when they are imported, so that no process imports one for a hook."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class LateHooks(MetaPathFinder):
    """A finder on `sys.meta_path` that calls a function when one of some modules was imported.

    Parameters
    ----------
    modules
        Names of modules that are not loaded yet.
    on_import
        Called with the name of each of them, once, after the module has run.
    """

    def __init__(self, modules: set[str], on_import: Callable[[str], None]) -> None:
        self._waiting = set(modules)
        self._searched: set[str] = set()
        self._on_import = on_import

    def install(self) -> None:
        """Put the finder in front of the other finders."""
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec that the other finders find, with a loader that reports the import."""
        if name not in self._waiting or name in self._searched:
            return None
        self._searched.add(name)  # another finder may ask all finders in its own search
        try:
            for finder in sys.meta_path:
                find = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = None if finder is self or find is None else find(name, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _ReportingLoader(spec.loader, self._report)
                    return spec
            return None
        finally:
            self._searched.discard(name)

    def _report(self, name: str) -> None:
        # Not earlier: a search may be a mere question, and an import may fail and be tried again.
        if name in self._waiting:
            self._waiting.discard(name)
            self._on_import(name)


class _ReportingLoader(Loader):
    """Loads a module by its own loader, which it puts back, and reports the import."""

    def __init__(self, loader: Loader, on_import: Callable[[str], None]) -> None:
        self._loader = loader
        self._on_import = on_import

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._on_import(module.__name__)
