"""Fixtures of the tests of tiers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vitcache.tiers import DiskTier


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of `tier`. A file beside it must never be read, written or removed."""
    return tmp_path / "tier"


@pytest.fixture
def tier(root: Path) -> Iterator[DiskTier]:
    """An open disk tier of 4 MiB."""
    made = DiskTier(root, 4 << 20)
    made.open()
    yield made
    made.close()
