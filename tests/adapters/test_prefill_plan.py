"""`plan_steps` runs each token once, in order, within the limit of a step."""

from __future__ import annotations

import random

import pytest

from vitcache.adapters.prefill_plan import plan_steps


def test_steps_of_one_prompt_are_its_chunks() -> None:
    assert list(plan_steps([range(3, 10)], 3)) == [{0: range(3, 6)}, {0: range(6, 9)}, {0: range(9, 10)}]
    assert list(plan_steps([range(3, 3)], 3)) == []
    assert list(plan_steps([], 3)) == []


def test_prompts_share_a_step_and_short_ones_leave_their_share_to_others() -> None:
    assert list(plan_steps([range(9), range(2), range(20, 29)], 8)) == [
        {1: range(2), 0: range(3), 2: range(20, 23)},
        {0: range(3, 7), 2: range(23, 27)},
        {0: range(7, 9), 2: range(27, 29)},
    ]


def test_more_prompts_than_tokens_wait_for_earlier_ones() -> None:
    assert list(plan_steps([range(1), range(1), range(1)], 2)) == [{0: range(1), 1: range(1)}, {2: range(1)}]


@pytest.mark.parametrize("seed", range(20))
def test_every_token_runs_once_and_in_order(seed: int) -> None:
    choose = random.Random(seed)
    starts = [choose.randrange(50) for _ in range(choose.randrange(1, 9))]
    remaining = [range(start, start + choose.choice([0, 1, 2, 30, 100])) for start in starts]
    limit = choose.choice([1, 2, 7, 40, 1000])
    reached = [tokens.start for tokens in remaining]
    for step in plan_steps(remaining, limit):
        assert 0 < sum(map(len, step.values())) <= limit
        for prompt, tokens in step.items():
            assert len(tokens) > 0
            assert tokens.start == reached[prompt]
            reached[prompt] = tokens.stop
    assert reached == [tokens.stop for tokens in remaining]
