"""The environment variable VITCACHE_DISABLE: the adapters do without vitcache's cache while it is set."""

from __future__ import annotations

import logging
import os

from vitcache.device.locks import new_lock

logger = logging.getLogger("vitcache.adapters")


def is_disabled() -> bool:
    """Whether VITCACHE_DISABLE is set to another value than ``""`` and ``"0"``.

    Each call reads `os.environ`, which takes about a microsecond. So a running process can set the variable.
    """
    return os.environ.get("VITCACHE_DISABLE", "") not in ("", "0")


class DisabledCalls:
    """Counts the calls of one adapter that were served without the cache. Logs the first one as a warning.

    Any thread may use it.
    """

    def __init__(self, adapter: str) -> None:
        self._adapter = adapter
        self._lock = new_lock()
        self.number = 0

    def count(self) -> None:
        """Count one call."""
        with self._lock:
            self.number += 1
            is_first = self.number == 1
        if is_first:
            logger.warning(
                "VITCACHE_DISABLE is set: %s encodes every image and does not use its cache; further calls "
                "are only counted",
                self._adapter,
            )
