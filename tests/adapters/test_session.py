"""What an attachment counts and remembers of its model."""

from __future__ import annotations

import torch
from torch import nn

from vitcache import EmbeddingCache, Namespace
from vitcache.adapters.session import Session


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(2, 2)
        self.language_model = nn.Linear(2, 2)


def make_session(shadow_every: int = 0) -> Session:
    cache = EmbeddingCache(2, dtype=torch.float32, device="cpu", device_bytes=1 << 10)
    return Session(Model(), "tower", cache, Namespace("model"), None, shadow_every)


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
