"""`PinnedRing.has_free_bytes`: whether a copy can be queued now without a wait for slots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcache import PinnedRing
from vitcache.ring.pinned_ring import MAX_SLOTS
from vitcache.testing import stand_in

CAPACITY, PIECE = 1 << 14, 1 << 10


@pytest.fixture(autouse=True)
def fresh_stand_in() -> Iterator[None]:
    stand_in.reset()
    yield
    stand_in.reset()


def open_ring(**options: Any) -> PinnedRing:
    return PinnedRing(CAPACITY, backend="host", num_threads=1, **{"piece_bytes": PIECE, **options})


def copy(ring: PinnedRing, num_bytes: int) -> None:
    source = torch.ones(num_bytes, dtype=torch.uint8)
    ring.copy_to(torch.empty_like(source), source, timeout_s=0)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, CAPACITY + PIECE), max_size=12), retired=st.integers(0, 12))
def test_copy_for_which_the_ring_has_free_bytes_does_not_wait(sizes: list[int], retired: int) -> None:
    """Copies until `retired` retire; no slot of a later copy does. The position in the ring varies."""
    with open_ring() as ring:
        for size in sizes[:retired]:
            if ring.has_free_bytes(size):
                copy(ring, size)
        while ring.stats().num_slots:
            pass
        with ring.hold():
            for size in sizes[retired:]:
                if ring.has_free_bytes(size):
                    copy(ring, size)  # raises TimeoutError if it would wait


def test_has_free_bytes_of_an_empty_ring_is_true_for_all_but_the_last_piece() -> None:
    with open_ring() as ring:
        assert ring.has_free_bytes(0)
        # A slot may skip the end of the ring, and each piece may be followed by 256 bytes of alignment.
        most = CAPACITY - PIECE - 256 * (CAPACITY // PIECE)
        assert ring.has_free_bytes(most)
        assert not ring.has_free_bytes(CAPACITY)
        with ring.hold():
            copy(ring, CAPACITY // 2)
            assert not ring.has_free_bytes(CAPACITY // 2)
            assert ring.has_free_bytes(CAPACITY // 4)


def test_has_free_bytes_without_free_slots_is_false() -> None:
    with PinnedRing(1 << 20, backend="host", num_threads=1, piece_bytes=256) as ring, ring.hold():
        copy(ring, 256 * (MAX_SLOTS - 1))
        assert ring.has_free_bytes(256)
        assert not ring.has_free_bytes(257)
        copy(ring, 256)
        assert not ring.has_free_bytes(1)
        with pytest.raises(TimeoutError, match="1024 slots, the maximum"):
            copy(ring, 1)


def test_has_free_bytes_refuses_other_types_negative_numbers_and_a_closed_ring() -> None:
    with open_ring() as ring:
        for wrong in (True, np.bool_(True), 1.0, "1"):
            with pytest.raises(TypeError, match="num_bytes must be an int"):
                ring.has_free_bytes(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="num_bytes is -1, it must be at least 0"):
            ring.has_free_bytes(-1)
        assert ring.has_free_bytes(np.int64(1))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="the ring was closed"):
        ring.has_free_bytes(1)
