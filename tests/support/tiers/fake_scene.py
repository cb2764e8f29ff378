"""Transfers in memory that is registered, and tiers of a `FakeStore`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tiers.fake_store import FakeStore
from tiers.scene import rows_of, transfer_of
from vitcache.tiers import EntryName, FetchOutcome, MooncakeTier, Transfer

_kept: list[Transfer] = []  # registered memory stays valid until the tier is closed


def open_tier(fake: FakeStore, **options: Any) -> MooncakeTier:
    tier = MooncakeTier(fake.address, **options)
    tier.open()
    return tier


def registered(tier: MooncakeTier, transfers: Sequence[Transfer]) -> list[Transfer]:
    _kept.extend(transfers)
    for transfer in transfers:
        for part in transfer.parts:
            tier.register(part)
    return list(transfers)


def store(tier: MooncakeTier, *names: EntryName, num_parts: int = 2) -> list[bool]:
    """Store right rows."""
    return tier.store(registered(tier, [transfer_of(name, rows_of(name), num_parts) for name in names]))


def fetch(
    tier: MooncakeTier, *names: EntryName, num_parts: int = 2
) -> tuple[list[FetchOutcome], list[Transfer]]:
    fetches = registered(tier, [transfer_of(name, None, num_parts) for name in names])
    return tier.fetch(fetches), fetches
