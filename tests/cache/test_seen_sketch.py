"""The sketch of recently seen keys."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest

from vitcache.cache.policies.seen_sketch import SeenSketch

MAKERS: dict[str, Callable[[int], bytes]] = {
    "digest": lambda number: sha256(str(number).encode()).digest(),
    "trailing zeros": lambda number: number.to_bytes(32, "little"),
    "leading zeros": lambda number: number.to_bytes(32, "big"),
    "shifted": lambda number: (number << 130).to_bytes(32, "little"),
    "text": lambda number: b"%032d" % number,
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("num_keys", [1, 3, 1000])
def test_sketch_contains_added_keys_and_few_other_keys(maker: str, num_keys: int) -> None:
    sketch, make = SeenSketch(num_keys), MAKERS[maker]
    for number in range(2 * num_keys):
        sketch.add(make(number))
    assert all(make(number) in sketch for number in range(num_keys, 2 * num_keys))
    assert sum(make(number) in sketch for number in range(10**6, 10**6 + 10_000)) < 10


def test_sketch_forgets_a_key_after_at_most_two_fillings() -> None:
    sketch, make = SeenSketch(100), MAKERS["digest"]
    for number in range(300):
        sketch.add(make(number))
    assert not any(make(number) in sketch for number in range(100))
    assert all(make(number) in sketch for number in range(100, 300))
