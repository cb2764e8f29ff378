"""A real `Engine` with vitcache gives the tokens and the log probabilities of the engine without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_runner.pool import Outcome
from sglang_runner.cases import CHUNK, STEPS

Result = Callable[[str], dict[str, Any]]
COMPARED = ("images", "tokens", "logprobs", "prompt_logprobs", "prompt_tokens", "cached_tokens")

pytestmark = pytest.mark.engines("stock", "vitcache")


def answers(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of a caller of the engine. The log probabilities are not rounded."""
    return [{name: turn[name] for name in COMPARED} for turn in turns]


def total(turns: list[dict[str, Any]], count: str) -> int:
    """The sum of a count. Of turns that are answered at once, the first has the count."""
    return sum(turn.get(count, 0) for turn in turns)


@pytest.mark.parametrize("step", [*STEPS, "reload"])
def test_vitcache_gives_the_tokens_and_log_probabilities_of_stock(step: str, result: Result) -> None:
    stock, vitcache = result("stock")[step], result("vitcache")[step]
    assert answers(vitcache) == answers(stock)
    assert all(len(turn["tokens"]) == len(turn["logprobs"]) > 0 for turn in stock)


@pytest.mark.parametrize("step", [*STEPS, "reload"])
def test_vitcache_places_every_chunk_that_stock_looks_up(step: str, result: Result) -> None:
    stock, vitcache = result("stock")[step], result("vitcache")[step]
    assert total(vitcache, "placed") == total(stock, "lookups") > 0
    assert total(vitcache, "lookups") == total(stock, "placed") == 0


def test_vitcache_leaves_no_step_to_stock_and_no_image_fails(result: Result) -> None:
    counts = result("vitcache")["counts"]
    assert counts["vitcache"]["originals"] == {}
    assert counts["vitcache"]["errors"] == counts["vitcache"]["unshared"] == 0
    assert counts["vitcache"]["encodes"] == counts["encodes"] > 0


def test_chat_is_cut_into_chunks_and_encodes_each_image_once(result: Result) -> None:
    turns = result("vitcache")["chat"]
    assert [len(turn["images"]) for turn in turns] == [1, 2, 3, 3]
    assert [turn["encodes"] for turn in turns] == [1, 1, 1, 0]
    assert [turn["placed"] for turn in turns] == [-(-turn["prompt_tokens"] // CHUNK) for turn in turns]
    assert min(turn["placed"] for turn in turns) > 1
    assert {turn["cached_tokens"] for turn in turns} == {0}  # each turn has embedded all of its tokens


def test_swapped_image_changes_the_log_probabilities(result: Result) -> None:
    chat, [swapped] = result("vitcache")["chat"], result("vitcache")["swapped"]
    assert swapped["prompt_tokens"] == chat[-1]["prompt_tokens"]
    assert swapped["logprobs"] != chat[-1]["logprobs"] == chat[-2]["logprobs"]
    assert swapped["encodes"] == 1


def test_turn_that_continues_cached_tokens_encodes_its_new_image_only(result: Result) -> None:
    turns = result("vitcache")["prefix"]
    assert [turn["encodes"] for turn in turns] == [1, 1, 1]
    cached = [turn["cached_tokens"] for turn in turns]
    assert cached == sorted(set(cached))
    assert all(turn["cached_tokens"] % CHUNK for turn in turns)  # no chunk begins as in a whole prompt


def test_flush_removes_the_rows_of_all_images(result: Result) -> None:
    [flushed] = result("vitcache")["flush"]
    assert flushed["encodes"] == len(flushed["images"])


def test_new_weights_give_new_rows_of_known_images(result: Result) -> None:
    [seen], [reloaded] = result("vitcache")["seen"], result("vitcache")["reload"]
    assert reloaded["done"][0], reloaded["done"]
    assert reloaded["images"] == seen["images"]
    assert reloaded["encodes"] == len(seen["images"])
    assert reloaded["logprobs"] != seen["logprobs"]


@pytest.mark.engines("disabled")
def test_disabled_vitcache_leaves_every_step_to_stock(result: Result) -> None:
    stock, disabled = result("stock"), result("disabled")
    assert answers(disabled["chat"]) == answers(stock["chat"])
    for count in ("lookups", "encodes", "placed"):
        assert total(disabled["chat"], count) == total(stock["chat"], count)
    assert disabled["counts"]["vitcache"]["originals"] == {"disabled": total(stock["chat"], "lookups")}


@pytest.mark.engines("renamed-function")
def test_engine_whose_hooks_did_not_take_ends_with_a_line_that_says_why(
    outcome: Callable[[str], Outcome],
) -> None:
    found = outcome("renamed-function")
    assert found.code != 0, found.tail()
    assert not found.is_cut, found.tail()
    assert "sglang.srt.managers.mm_utils.embed_mm_inputs is missing" in found.output, found.tail()
    assert "Prefill batch" not in found.output  # no request was served
