"""The sketch of recently evicted keys, through the policy "cost": a key in the sketch counts as hit."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest

from vitcache.cache.policies import make_policy

MAKERS: dict[str, Callable[[int], bytes]] = {
    "digest": lambda number: sha256(str(number).encode()).digest(),
    "trailing zeros": lambda number: number.to_bytes(32, "little"),
    "leading zeros": lambda number: number.to_bytes(32, "big"),
    "shifted": lambda number: (number << 130).to_bytes(32, "little"),
    "text": lambda number: b"%032d" % number,
}
# Number of new keys after each key that counts as hit. Without them the policy learns that new keys are hit,
# and treats every new key as it treats a key that was hit.
NEW_KEYS = 40


class Sketch:
    """The sketch of a policy "cost" that evicts each added key."""

    def __init__(self, num_keys: int, make: Callable[[int], bytes]) -> None:
        self.policy = make_policy("cost", num_keys)
        self.make = make
        self.num_new = 0

    def add(self, number: int) -> None:
        self.policy.insert(self.make(number), 1, 1.0)
        self.policy.evict(self.make(number))

    def __contains__(self, number: int) -> bool:
        is_seen = self.is_worth_copy(self.make(number))
        if is_seen:
            for _ in range(NEW_KEYS):
                self.num_new += 1
                self.is_worth_copy(self.make(10**9 + self.num_new))
        return is_seen

    def is_worth_copy(self, key: bytes) -> bool:
        self.policy.insert(key, 1, 1.0)
        try:
            return self.policy.is_worth_copy(key)
        finally:
            self.policy.remove(key)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("num_keys", [1, 3, 1000])
def test_sketch_contains_added_keys_and_few_other_keys(maker: str, num_keys: int) -> None:
    sketch = Sketch(num_keys, MAKERS[maker])
    for number in range(2 * num_keys):
        sketch.add(number)
    assert all(number in sketch for number in range(num_keys, 2 * num_keys))
    assert sum(number in sketch for number in range(10**6, 10**6 + 10_000)) < 10


def test_sketch_forgets_a_key_after_at_most_two_fillings() -> None:
    sketch = Sketch(100, MAKERS["digest"])
    for number in range(300):
        sketch.add(number)
    assert not any(number in sketch for number in range(100))
    assert all(number in sketch for number in range(100, 300))
