"""Fixtures of the tests of tiers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiers.fake_store import FakeStore, fake_store
from tiers.shared_store import opened

from vitcache.bench.harness.store_cluster import StoreCluster, store_cluster
from vitcache.tiers import DiskTier
from vitcache.tiers.mooncake_tier import MooncakeTier


@pytest.fixture(scope="session")
def store() -> Iterator[StoreCluster]:
    """A Mooncake store with two nodes, which no test stops."""
    with store_cluster(2, 128 << 20) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def store_tiers(store: StoreCluster) -> Iterator[dict[bool, MooncakeTier]]:
    """Tiers of `store`, by `single_flight`. They stay open: each `close` waits for up to 1 s."""
    tiers = {single: MooncakeTier(store.address, single_flight=single) for single in (False, True)}
    yield tiers
    for tier in tiers.values():
        tier.close()


@pytest.fixture
def store_tier(store_tiers: dict[bool, MooncakeTier]) -> Iterator[MooncakeTier]:
    """An open tier of a store, which is empty."""
    yield from opened(store_tiers[False])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStore]:
    """A store in this process, in place of Mooncake's engine."""
    with fake_store(monkeypatch) as store:
        yield store


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
