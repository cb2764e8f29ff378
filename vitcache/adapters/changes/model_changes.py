"""`ModelChanges`: counts the changes of an attached model, by kind.

After most changes, no earlier entry is used. docs/changes.md tells for each change how it is noticed.
"""

from __future__ import annotations

import logging
from collections import Counter

from vitcache.device.locks import new_lock

logger = logging.getLogger("vitcache.adapters")

OPTIMIZER = "an optimizer stepped"
WRITTEN = "weights were written"
REPLACED = "weights or modules were replaced"
HOOKS = "hooks changed"
METHODS = "methods of modules changed"
SETTINGS = "settings changed"
ADAPTERS = "adapters changed"
TRAINING = "a call in training mode"
INVALIDATED = "invalidate was called"
FINGERPRINT = "the fingerprint of the weights differs"


class ModelChanges:
    """Counts changes by kind, and logs the first one of each kind.

    Any thread may use it.

    Parameters
    ----------
    model
        The name of the model, for the log.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._lock = new_lock()  # a signal handler may note a change while its thread does
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """The number of changes by kind, a new dict."""
        with self._lock:
            return dict(self._counts)

    def note(self, kind: str, detail: str = "") -> None:
        """Count a change. `detail` names the changed part, for the log."""
        with self._lock:
            self._counts[kind] += 1
            is_first = self._counts[kind] == 1
        if is_first:
            named = f" ({detail})" if detail else ""
            logger.info("%s: %s%s; further changes of this kind are only counted", self._model, kind, named)
