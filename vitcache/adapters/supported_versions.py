"""`warn_unsupported`: one warning about the versions of packages that vitcache does not support."""

from __future__ import annotations

import logging
from functools import cache

from vitcache.versions import SUPPORTED, installed_version, support_note

logger = logging.getLogger("vitcache.adapters")


@cache
def warn_unsupported() -> None:
    """Log one warning per process that names each installed package outside of its range."""
    notes = []
    for package in SUPPORTED:
        installed = installed_version(package)
        if installed is not None and (note := support_note(package, installed)):
            notes.append(f"{package} is {installed}{note}")
    if notes:
        logger.warning(
            "%s; attach reads internals of these packages, which may differ. To install a supported "
            "transformers: pip install 'vitcache[transformers]'",
            "; ".join(notes),
        )
