"""`LearnedRows` guesses the rows of an item from encoded items, and is silent where they disagree."""

from __future__ import annotations

import torch

from vitcache.adapters.learned_rows import LearnedRows


def test_learned_rows_are_those_of_an_equal_item_or_in_proportion_to_the_pixels() -> None:
    learned = LearnedRows()
    assert learned.guess((16, 6), (1, 4, 4)) is None
    learned.learn((16, 6), (1, 4, 4), 4)
    assert learned.guess((16, 6), (1, 4, 4)) == 4
    assert learned.guess((64, 6), (1, 8, 8)) == 16
    assert learned.guess((6, 6), [1, 2, 3]) is None  # one row and a half


def test_learned_rows_that_are_not_in_proportion_serve_equal_items_only() -> None:
    learned = LearnedRows()
    learned.learn((2, 3, 8), ((8, 8),), 10)
    learned.learn((3, 3, 8), ((8, 14),), 17)
    assert learned.guess((2, 3, 8), ((8, 8),)) == 10
    assert learned.guess((3, 3, 8), ((8, 14),)) == 17
    assert learned.guess((3, 3, 8), ((14, 8),)) is None
    assert learned.guess((4, 3, 8), ((8, 8),)) is None


def test_learned_rows_of_a_split_of_the_user_ignore_its_tensors() -> None:
    learned = LearnedRows()
    learned.learn((4, 4), {"mask": torch.ones(2), "size": 3}, 5)
    learned.learn((4, 4), {"mask": torch.ones(2), "size": 4}, 6)
    assert learned.guess((4, 4), {"mask": torch.zeros(2), "size": 3}) == 5
    assert learned.guess((4, 4), {"mask": torch.zeros(2), "size": 5}) is None
    learned.learn((0, 4), None, 0)
    assert learned.guess((0, 4), None) == 0
