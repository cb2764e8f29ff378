"""Whether the installed transformers is in a range of versions."""

from __future__ import annotations

import transformers
from packaging.version import Version


def is_installed(since: str | None, before: str | None) -> bool:
    """Whether the installed version is at least `since` and less than `before`, where they are given."""
    installed = Version(transformers.__version__)
    is_new = since is None or installed >= Version(since)
    return is_new and (before is None or installed < Version(before))
