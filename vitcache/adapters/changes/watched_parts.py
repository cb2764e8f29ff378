"""`WatchedParts`: the parts of a model outside of the language model that decide the rows of an item."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from vitcache.adapters.changes.outer_modules import outer_modules
from vitcache.adapters.changes.settings import (
    HOOK_TABLES,
    class_text,
    describe,
    hooks_of,
    is_adapter_layer,
    is_config,
    is_method,
    is_of_forward,
    is_random,
    mixes_adapters,
    own_values,
)
from vitcache.adapters.changes.weight_parts import kept_weights, parts_of, tensors_in

_TABLES = ("_parameters", "_buffers", "_modules")


class WatchedParts:
    """The weights, settings and methods of a model at one moment.

    Parameters
    ----------
    model
        The module that owns the stock methods. Its hooks are not watched: features do not run them.
    ignored
        Names of settings that the stock method writes.

    Attributes
    ----------
    modules
        The modules outside of the language model.
    namespaces, watched
        The dicts that contain the parts, and for each of them the watched names and whether the number of
        its entries is watched: the arguments of `ModuleWatch`.
    weights
        The tensors by name; a tensor subclass is followed by the tensors in it.
    settings, adapters
        The settings of modules, and those of layers with adapters, as texts by name.
    values
        The values of settings, and the configs. `WeightsFingerprint` keeps them, because `ModuleWatch`
        compares identities, and a new value may get the address of a freed one.
    methods
        Functions and packed weights in the ``__dict__`` of modules, by name.
    mixes_adapters
        Whether a running forward has an adapter per prompt.
    random
        The name of a module whose output is random, because it is in training mode, or "".
    """

    def __init__(self, model: nn.Module, ignored: frozenset[str]) -> None:
        self.namespaces: list[dict[Any, Any]] = []
        self.watched: list[tuple[frozenset[Any] | None, bool]] = []
        self.weights: dict[str, Tensor] = {}
        self.settings: dict[str, str] = {}
        self.adapters: dict[str, str] = {}
        self.values: list[Any] = []
        self.methods: dict[str, Any] = {}
        self.mixes_adapters = False
        self.random = ""
        self._ignored = ignored
        self._configs: set[int] = set()
        modules = outer_modules(model)
        self.modules = list(modules.values())
        self._outer = frozenset(map(id, self.modules))
        for path, module in modules.items():
            self._add_module(path, module, is_owner=module is model)
        for name in ("_global" + name for name in HOOK_TABLES):
            self._add(getattr(module_hooks, name), None, is_sized=True)
            if hooks := hooks_of(module_hooks, name):
                self.settings[name] = hooks

    def _add_module(self, path: str, module: nn.Module, *, is_owner: bool) -> None:
        namespace, names = vars(module), set(_TABLES)
        prefix = f"{path}." if path else ""
        for name in ("_parameters", "_buffers"):
            self._add_weights(prefix, namespace[name])
        for dataset, keys in kept_weights(module):
            self._add(dataset, keys, is_sized=False)
            self._add_weights(f"{prefix}kept.", {key: dataset[key] for key in keys})
        settings = self.settings
        if children := self._children_of(namespace["_modules"]):
            settings[f"{prefix}_modules"] = children
        if not is_owner and is_random(module):
            self.random = path
        if is_adapter_layer(module):
            settings = self.adapters
            self.mixes_adapters = self.mixes_adapters or mixes_adapters(module)
        for name, value in own_values(namespace):
            key = prefix + name
            if is_config(value):
                names.add(name)
                self._add_config(key, value)
            elif name == "config":
                self.methods[key] = value
            elif key not in self._ignored and not (is_owner and is_of_forward(name, value)):
                text = describe(value, self.values)
                if text is not None:
                    settings[key] = text
                elif is_method(value):
                    self.methods[key] = value
                elif settings is self.adapters and (tensors := dict(tensors_in(key, value))):
                    self.weights.update(tensors)
                else:
                    continue
                names.add(name)
        if not is_owner:
            names.update(HOOK_TABLES)
            for name in HOOK_TABLES:
                if hooks := hooks_of(module, name):
                    self.settings[prefix + name] = hooks
        self._add(namespace, frozenset(names), is_sized=True)

    def _children_of(self, children: dict[str, Any]) -> str:
        """Return the names and classes of children in their order: an activation has no weight or setting."""
        outer = [(name, child) for name, child in list(children.items()) if id(child) in self._outer]
        return ", ".join(f"{name}: {class_text(child)}" for name, child in outer)

    def _add_config(self, key: str, config: Any) -> None:
        if id(config) in self._configs:
            return
        self._configs.add(id(config))
        self.values.append(config)
        names = set()
        for name, value in list(vars(config).items()):
            text = describe(value, self.values)
            if text is not None and f"{key}.{name}" not in self._ignored:
                self.settings[f"{key}.{name}"] = text
                names.add(name)
        self._add(vars(config), frozenset(names), is_sized=True)

    def _add_weights(self, prefix: str, table: dict[str, Any]) -> None:
        for name, tensor in list(table.items()):
            if isinstance(tensor, Tensor):
                self.weights.update(parts_of(prefix + name, tensor))

    def _add(self, namespace: dict[Any, Any], names: frozenset[Any] | None, *, is_sized: bool) -> None:
        self.namespaces.append(namespace)
        self.watched.append((names, is_sized))
