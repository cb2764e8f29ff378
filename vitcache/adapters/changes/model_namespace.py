"""`ModelNamespace`: the namespace of a model's rows, which tells the states of the model apart."""

from __future__ import annotations

from torch import nn

from vitcache.adapters.changes.altering_hooks import altering_hooks
from vitcache.adapters.changes.byte_fingerprint import ByteFingerprint
from vitcache.adapters.changes.settings import is_hook
from vitcache.adapters.changes.weights_names import WeightsNames
from vitcache.adapters.feature_owner import option_names
from vitcache.adapters.weights import WeightsFingerprint
from vitcache.device.locks import new_lock
from vitcache.keys.namespace import Namespace

# States that are kept, so that a switch back to them is cheap. Each has a kilobyte per weight.
_MOST_STATES = 32
_MOST_WEIGHTS = 32_768  # of all states together, if these are more than 4


class ModelNamespace:
    """Compares a model with its state at the last look, and has a namespace for each state.

    After a change of weights or methods the namespace is new. A state of settings, hooks and adapters that
    returns has its earlier namespace. Any thread may call any method. An exception of a signal handler leaves
    the earlier state, and the next look finds the change again.

    Parameters
    ----------
    model
        The module that owns the stock methods.
    tower_name
        Name of the child that is its vision tower.
    namespace
        The namespace of the model as it is now, without adapters.
    outlives
        Whether rows outlive the process. Then hooks and settings that are new at the first look have a name
        of their own, too, unless transformers has made them: a later process may have `namespace` without
        them.

    Attributes
    ----------
    bytes
        The fingerprint of the weights' bytes. A change that `look` finds resets it. None: bytes are not
        compared.
    value
        The namespace at the last look.
    weights
        The state at the last look.
    """

    def __init__(
        self, model: nn.Module, tower_name: str, namespace: Namespace, *, outlives: bool = False
    ) -> None:
        self._model = model
        self._tower_name = tower_name
        self.bytes: ByteFingerprint | None = None
        # Reentrant: a signal handler or a finalizer may call `renew` while its thread looks.
        self._lock = new_lock()
        self._renewals = 0
        # None in place of an argument of a stock method stands for the config's value, which is in the keys.
        self._ignored = frozenset(f"config.{name}" for name in option_names(model))
        self._written: frozenset[str] = frozenset()
        self._is_first = True
        self._hooks = altering_hooks(model) if outlives else None  # at the start
        self.weights = self._fingerprint()
        self._names = WeightsNames(namespace, self.weights)
        self.value = self._names.digest(self.weights)
        self._states = [(self.weights, self.value)]  # the last ones, of equal weights

    def look(self) -> list[tuple[str, str]]:
        """Update `value`. Return the kinds of changes since the last look, with names of changed parts."""
        with self._lock:
            if self.weights.is_current():
                self._is_first = False
                return []
            renewals = self._renewals
            changes = self._change_state(self._is_first)
            if renewals != self._renewals:
                self._renew()
            self._is_first = False
            return changes

    def is_in_state_of(self, namespace: bytes) -> bool:
        """Whether weights and active adapters are now those of an earlier look with this namespace.

        False if they are unknown, because a change was noticed since. Call it before rows are inserted:
        another thread may have written weights, or switched the adapters, while they were encoded. Such rows
        must not leave the process under this namespace.
        """
        with self._lock:
            for weights, known in self._states:
                if known == namespace:
                    now = self.weights if self.weights.is_current() else self._fingerprint()
                    return now.adapters == weights.adapters and now.change_since(weights) is None
            return False

    def renew(self) -> None:
        """Begin a new, random namespace for each state."""
        with self._lock:
            self._renewals += 1
            self._renew()

    def ignore_own_settings(self) -> None:
        """Give the state after a first encode the name of the state before: the stock method wrote settings.

        It sets some once, and may count its calls: a setting that it writes twice is ignored from then on.
        Call this after the first encode of a kind of calls, when other calls of the model have to wait.
        Another thread may have set a setting since, so one write alone must not end the watch of it.
        """
        with self._lock:
            before = self.weights
            if before.is_current():
                return
            weights = self._fingerprint()
            if weights.change_since(before) is not None or weights.adapters != before.adapters:
                return  # the next look notices it
            written = {name for name in weights.changed_settings(before) if not is_hook(name)}
            self._ignored |= written & self._written
            self._written |= written
            if written & self._ignored:
                weights = self._fingerprint()
            self._names.accept(before, weights)
            self._enter(weights, self.value, [(weights, self.value)])

    def _change_state(self, is_first: bool) -> list[tuple[str, str]]:
        before = self.weights
        for weights, namespace in self._states:  # a switch back costs no new fingerprint
            if weights.is_current():
                changes = weights.setting_changes_since(before)
                self._enter(weights, namespace, self._states)
                return changes
        weights = self._fingerprint()
        change = weights.change_since(before)
        if change is not None:
            if self.bytes is not None:
                self.bytes.reset()
            self._renew(weights)
            return [change]
        if is_first:
            self._start_with(weights)
        earlier, namespace = self.value, self._names.digest(weights)
        changes = [] if namespace == earlier else weights.setting_changes_since(before)
        most = min(_MOST_STATES, max(4, _MOST_WEIGHTS // max(1, weights.num_weights)))
        self._enter(weights, namespace, [*self._states[1 - most :], (weights, namespace)])
        return changes

    def _start_with(self, weights: WeightsFingerprint) -> None:
        hooks, self._hooks = self._hooks, None
        if hooks is None:
            self._names.start_with(weights)
        elif hooks == altering_hooks(self._model):
            self._names.start_with(weights, only_notes=True)

    def _fingerprint(self) -> WeightsFingerprint:
        tower = self._model._modules[self._tower_name]
        return WeightsFingerprint(self._model, tower, self._ignored)  # type: ignore[arg-type]

    def _renew(self, weights: WeightsFingerprint | None = None) -> None:
        """Give the state a new name. None: the state is the one at the last look."""
        weights = weights or self.weights
        self._names.renew(weights)
        namespace = self._names.digest(weights)
        self._enter(weights, namespace, [(weights, namespace)])

    def _enter(
        self, weights: WeightsFingerprint, namespace: bytes, states: list[tuple[WeightsFingerprint, bytes]]
    ) -> None:
        """Note the state of the model. `weights` is last: after an interrupt, the next look begins anew."""
        self._states = states
        self.value = namespace
        self.weights = weights
