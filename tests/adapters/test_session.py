"""`Session`: counts, the namespace of the weights, and the movers of pixels."""

from __future__ import annotations

import torch
from caches import make_cache
from torch import nn

from vitcache import Namespace, PinnedRing
from vitcache.adapters.session import Session


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(2, 2)
        self.language_model = nn.Linear(2, 2)


def make_session(shadow_every: int = 0, ring: PinnedRing | None = None) -> Session:
    cache = make_cache(width=2)
    return Session(Model(), "tower", cache, Namespace("model"), ring, shadow_every)


def test_note_difference_counts_and_keeps_the_largest_difference() -> None:
    session = make_session(shadow_every=2)
    for difference in (0.5, 2.0, 1.0, 0.0):
        session.note_difference(bytes(32), difference)
    assert (session.stats.shadowed, session.stats.shadow_difference) == (4, 2.0)


def test_count_adds_to_each_named_count() -> None:
    session = make_session()
    session.count(hits=1)
    session.count(hits=2, encoded=5)
    assert (session.stats.hits, session.stats.encoded, session.stats.bypassed) == (3, 5, 0)
    assert session.shadow is None


def test_namespace_changes_with_a_write_to_the_tower_only() -> None:
    session = make_session()
    first = session.current_namespace()
    assert session.current_namespace() == first == Namespace("model").digest()
    with torch.no_grad():
        session.model.language_model.weight.zero_()
        assert session.current_namespace() == first
        session.model.tower.weight.zero_()
    second = session.current_namespace()
    assert second != first
    assert session.current_namespace() == second


def test_mover_uses_the_given_ring_for_the_device_of_that_ring_only() -> None:
    with PinnedRing(1 << 16, backend="host") as ring:
        session = make_session(ring=ring)
        to_cpu, to_meta = (session.mover_to(device) for device in (torch.device("cpu"), torch.device("meta")))
        assert session.mover_to(torch.device("cpu")) is to_cpu
        assert to_cpu.start(torch.ones(4)).ticket is not None
        assert ring.stats().copies == 1
        moved = to_meta.start(torch.ones(4))
        assert (moved.tensor.device.type, moved.ticket) == ("meta", None)
        assert ring.stats().copies == 1
