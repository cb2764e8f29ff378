"""`WeightsNames`: the namespace of a model's rows in each state of its adapters, settings and hooks."""

from __future__ import annotations

import os
from dataclasses import replace

from vitcache.adapters.changes.settings import OF_THE_PROCESS, is_hook
from vitcache.adapters.weights import WeightsFingerprint
from vitcache.keys.namespace import Namespace


class WeightsNames:
    """Names the states of one model. A state that returns has its earlier name.

    The name contains the adapters, and the other settings that differ from those at the start. After `renew`
    all names are new.

    Parameters
    ----------
    namespace
        The namespace of the model as it is now, without adapters.
    weights
        The state now.
    """

    def __init__(self, namespace: Namespace, weights: WeightsFingerprint) -> None:
        self._namespace = namespace
        self._nonce = ""
        self._base = weights.settings
        self._same: dict[tuple[str, str | None], str | None] = {}

    def digest(self, weights: WeightsFingerprint) -> bytes:
        """Return the namespace of a state."""
        lines = []
        names = self._base.keys() | weights.settings.keys() if self._base is not weights.settings else ()
        for name in sorted(names):
            text = weights.settings.get(name)
            text = self._same.get((name, text), text)
            if text != self._base.get(name):
                lines.append(f"{name}={text}")
        lines += [f"adapter {name}={weights.adapters[name]}" for name in sorted(weights.adapters)]
        if not self._nonce and not lines:
            return self._namespace.digest()
        return replace(self._namespace, adapter="\n".join((self._nonce, *lines))).digest()

    def renew(self, weights: WeightsFingerprint) -> None:
        """Give new, random names to all states, because the weights changed; `weights` is the state now."""
        self._nonce, self._base = os.urandom(16).hex(), weights.settings
        self._same.clear()

    def start_with(self, weights: WeightsFingerprint, *, only_notes: bool = False) -> None:
        """Take the hooks and new settings of `weights` as those at the start: the first forward sets some.

        `only_notes`: of the new settings, only the notes of transformers about its own work.
        """
        base = self._base
        self._base = {
            name: text if is_hook(name) else base.get(name, text)
            for name, text in weights.settings.items()
            if not only_notes or is_hook(name) or name in base or name.rpartition(".")[2] in OF_THE_PROCESS
        }

    def accept(self, before: WeightsFingerprint, after: WeightsFingerprint) -> None:
        """Give the settings and hooks of `after` the names of those of `before`."""
        for name in after.changed_settings(before):
            text = before.settings.get(name)
            self._same[name, after.settings.get(name)] = self._same.get((name, text), text)
