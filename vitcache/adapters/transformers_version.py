"""`warn_unsupported`: one warning for a version of transformers that vitcache does not support."""

from __future__ import annotations

import logging
from functools import cache

from vitcache.versions import SUPPORTED, support_note

logger = logging.getLogger("vitcache.adapters")


def warn_unsupported(installed: str) -> None:
    """Log a warning if this version of transformers is not supported; once per process and version."""
    if support_note("transformers", installed):
        _warn_once(installed)


@cache
def _warn_once(installed: str) -> None:
    first, last = SUPPORTED["transformers"]
    logger.warning(
        "transformers is %s, vitcache supports %s to %s: attach reads internals of transformers, which may "
        "differ; to install a supported version: pip install 'vitcache[transformers]'",
        installed,
        first,
        last,
    )
