"""The tier with planted faults: each fault occurs in the call that a test names, and in no other call."""

from __future__ import annotations

import numpy as np
import pytest
from hang_guard import Running
from tiers.planted_tier import PlantedTier
from tiers.scene import name_of, rows_in, rows_of, store_rows, transfer_of

from vitcache.tiers import FetchOutcome


@pytest.fixture
def tier() -> PlantedTier:
    tier = PlantedTier()
    tier.open()
    store_rows(tier, [name_of(1), name_of(2)])
    return tier


def test_planted_error_is_raised_by_its_call_only(tier: PlantedTier) -> None:
    tier.fail("exists", OSError("planted"), nth=2)
    assert tier.exists([name_of(1)]) == [True]
    with pytest.raises(OSError, match="planted"):
        tier.exists([name_of(1)])
    assert tier.exists([name_of(1)]) == [True]


def test_late_write_changes_parts_of_an_unsafe_fetch_until_close(tier: PlantedTier) -> None:
    tier.return_unsafe()
    fetches = [transfer_of(name_of(1)), transfer_of(name_of(2))]
    assert tier.fetch(fetches) == [FetchOutcome.UNSAFE, FetchOutcome.HIT]
    assert tier.write_late(7) == name_of(1).num_bytes
    assert set(rows_in(fetches[0]).tolist()) == {7}
    assert np.array_equal(rows_in(fetches[1]), rows_of(name_of(2)))
    tier.close()
    assert tier.write_late(8) == 0
    assert set(rows_in(fetches[0]).tolist()) == {7}


def test_damaged_entry_has_wrong_bytes_and_is_dropped(tier: PlantedTier) -> None:
    tier.return_damaged()
    fetch = transfer_of(name_of(1))
    assert tier.fetch([fetch]) == [FetchOutcome.DAMAGED]
    assert not np.array_equal(rows_in(fetch), rows_of(name_of(1)))
    assert tier.fetch([fetch]) == [FetchOutcome.MISS]


def test_paused_call_waits_until_it_is_released(tier: PlantedTier) -> None:
    pause = tier.pause("exists")
    running = Running(lambda: tier.exists([name_of(1)]))
    assert pause.started.wait(60)
    pause.release()
    assert running.results() == [[True]]


def test_unregistered_memory_is_refused(tier: PlantedTier) -> None:
    fetch = transfer_of(name_of(1), num_parts=1)
    tier.register(fetch.parts[0])
    assert tier.fetch([fetch]) == [FetchOutcome.HIT]
    with pytest.raises(ValueError, match="not registered"):
        tier.fetch([transfer_of(name_of(1))])
