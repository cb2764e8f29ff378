"""With vitcache, a real `LLM` gives the tokens of the engine without it, and encodes each image once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_runner.cases import CHUNK
from engine_runner.chat import NUM_IMAGES, SIZES, TURNS

Result = Callable[[str], dict[str, Any]]


def names(first: str) -> tuple[str, str]:
    return f"{first}-stock", f"{first}-vitcache"


def both(first: str, *marks: pytest.MarkDecorator) -> Any:
    """A parameter that starts a pair of engines."""
    return pytest.param(first, id=first, marks=[pytest.mark.engines(*names(first)), *marks])


def tokens(result: dict[str, Any], step: str = "chat") -> list[list[int]]:
    return [turn["tokens"] for turn in result[step]]


def encodes(result: dict[str, Any], step: str = "chat") -> list[int]:
    return [turn["encodes"] for turn in result[step]]


PAIRS = [
    both("qwen3-whole"),
    both("qwen3-chunks"),
    both("qwen2_5-whole", pytest.mark.full),
    both("qwen2_5-chunks", pytest.mark.full),
    both("qwen3-v2-whole", pytest.mark.full),
    both("qwen3-v2-chunks", pytest.mark.full),
]


@pytest.mark.parametrize("first", PAIRS)
def test_vitcache_gives_stock_tokens_and_encodes_each_image_once(first: str, result: Result) -> None:
    stock, vitcache = map(result, names(first))
    assert len(TURNS) == 21
    assert tokens(vitcache) == tokens(stock)
    assert len(set(map(tuple, tokens(stock)))) > len(TURNS) // 2  # the images change the tokens
    assert sum(encodes(vitcache)) == NUM_IMAGES
    assert sum(encodes(stock)) > NUM_IMAGES


@pytest.mark.engines("qwen3-whole-stock", "qwen3-chunks-stock")
def test_stock_tokens_in_chunks_are_those_of_whole_prompts(result: Result) -> None:
    assert tokens(result("qwen3-chunks-stock")) == tokens(result("qwen3-whole-stock"))
    assert (
        max(height * width for height, width in SIZES) // 32**2 * 2 > CHUNK
    )  # two images are several chunks


@pytest.mark.engines("qwen3-whole-vitcache")
def test_reset_encoder_cache_makes_an_engine_with_vitcache_encode_again(result: Result) -> None:
    found = result("qwen3-whole-vitcache")
    assert encodes(found, "reset") == [0, 1, 0]
    assert len(set(map(tuple, tokens(found, "reset")))) == 1


@pytest.mark.engines(*names("qwen3-whole"))
def test_reloaded_weights_change_the_tokens_and_no_old_rows_are_used(result: Result) -> None:
    stock, found = map(result, names("qwen3-whole"))
    assert encodes(found, "reload") == [1, 0]
    assert tokens(found, "reload") == tokens(stock, "reload")
    assert tokens(found, "reload")[0] != tokens(found, "reset")[0]


@pytest.mark.full
@pytest.mark.engines("qwen3-whole-stock", "qwen3-host-of-13")
def test_host_tier_of_thirteen_images_evicts_and_gives_stock_tokens(result: Result) -> None:
    found = result("qwen3-host-of-13")
    assert tokens(found) == tokens(result("qwen3-whole-stock"))
    # The first images have left both tiers when they return: 0, 1 and later 2 are encoded again.
    assert sum(encodes(found)) == NUM_IMAGES + 3


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.engines(name, "qwen3-whole-stock"))
        for name in ("qwen3-no-host", "qwen3-one-image")
    ],
)
def test_few_pages_cost_encodes_but_give_stock_tokens(name: str, result: Result) -> None:
    found = result(name)
    assert tokens(found) == tokens(result("qwen3-whole-stock"))
    assert sum(encodes(found)) > NUM_IMAGES


@pytest.mark.full
@pytest.mark.engines("qwen3-whole-stock", "qwen3-disabled")
def test_disabled_vitcache_is_the_stock_engine(result: Result) -> None:
    stock, found = result("qwen3-whole-stock"), result("qwen3-disabled")
    assert tokens(found) == tokens(stock)
    assert encodes(found) == encodes(stock)
    assert set(found["counters"].values()) == {0}
