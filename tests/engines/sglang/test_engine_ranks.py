"""A real `Engine` of two tensor parallel ranks gives the answers of the engine without vitcache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sglang_runner.child import TURNS

Result = Callable[[str], dict[str, Any]]
COMPARED = ("images", "tokens", "logprobs", "prompt_logprobs", "prompt_tokens", "cached_tokens")

pytestmark = [pytest.mark.full, pytest.mark.engines("stock-ranks", "ranks")]


def answers(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: turn[name] for name in COMPARED} for turn in turns]


@pytest.mark.parametrize("step", ["chat", "new"])
def test_engine_of_two_ranks_answers_as_stock(step: str, result: Result) -> None:
    stock, ours = result("stock-ranks")[step], result("ranks")[step]
    assert answers(ours) == answers(stock)
    assert sum(turn["placed"] for turn in ours) == sum(turn["lookups"] for turn in stock) > 0
    assert sum(turn["lookups"] for turn in ours) == 0


def test_each_image_is_encoded_once_by_the_ranks(result: Result) -> None:
    assert [turn["encodes"] for turn in result("ranks")["chat"]] == [1, 1, 1, 0]


def test_images_that_one_rank_has_lost_are_encoded_by_both(result: Result) -> None:
    ours = result("ranks")
    [cleared] = ours["cleared"]
    assert answers([cleared]) == answers(ours["chat"][-1:])
    assert cleared["encodes"] == len(TURNS[-1])


def test_image_that_one_rank_cannot_read_ends_its_request_and_the_next_one_is_right(result: Result) -> None:
    ours = result("ranks")
    # The answer of the first rank. The log of the second one has the reason.
    assert "item 0 (IMAGE) has no rows" in ours["broken"]["text"]
    assert "failed on another rank" in ours["broken"]["text"]
    assert ours["counts"]["vitcache"]["ended"] == 1
    assert [turn["encodes"] for turn in ours["new"]] == [1]  # and the answer is that of stock
