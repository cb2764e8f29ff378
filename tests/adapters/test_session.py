"""What an attachment counts and remembers of its model."""

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


def test_the_largest_difference_of_all_comparisons_is_kept() -> None:
    session = make_session(shadow_every=2)
    for difference in (0.5, 2.0, 1.0, 0.0):
        session.note_difference(bytes(32), difference)
    assert (session.stats.shadowed, session.stats.shadow_difference) == (4, 2.0)


def test_counts_add_up_beside_each_other() -> None:
    session = make_session()
    session.count(hits=1)
    session.count(hits=2, encoded=5)
    assert (session.stats.hits, session.stats.encoded, session.stats.bypassed) == (3, 5, 0)
    assert session.shadow is None


def test_a_write_to_the_tower_begins_a_namespace_and_one_to_the_language_model_does_not() -> None:
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


def test_pixels_go_through_the_given_ring_where_it_goes_there() -> None:
    with PinnedRing(1 << 16, backend="host") as ring:
        session = make_session(ring=ring)
        here, elsewhere = (session.mover_to(device) for device in (torch.device("cpu"), torch.device("meta")))
        assert session.mover_to(torch.device("cpu")) is here
        assert here.start(torch.ones(4)).ticket is not None
        assert ring.stats().copies == 1
        moved = elsewhere.start(torch.ones(4))
        assert (moved.tensor.device.type, moved.ticket) == ("meta", None)
        assert ring.stats().copies == 1
