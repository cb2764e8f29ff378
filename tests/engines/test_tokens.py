"""With vitcache, a real `LLM` gives the tokens of the engine without it, and encodes each image once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_runner.cases import CHUNK, OTHERS
from engine_runner.chat import BEFORE, LONG, NUM_IMAGES, SIZES, TOGETHER, TURNS
from engine_runner.tiny_models import FAMILIES

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


FULL = pytest.mark.full
IN_CHUNKS = [both(f"{name}-v2-chunks", FULL) for name in FAMILIES]
PAIRS = [
    both("qwen3-whole"),
    both("qwen3-chunks"),
    both("qwen3-v2-whole"),
    *(both(f"{name}-whole", FULL) for name in OTHERS),
    both("qwen2_5-chunks", FULL),
    *(both(f"{name}-v2-whole", FULL) for name in OTHERS),
    *IN_CHUNKS,
    both("gemma3-v2-unsplit", FULL),
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


@pytest.mark.parametrize("first", IN_CHUNKS)
def test_steps_of_chunks_end_inside_of_images(first: str, result: Result) -> None:
    for name in names(first):
        assert result(name)["planned"]["splits"] > len(TURNS) // 2


@pytest.mark.full
@pytest.mark.engines(*names("gemma3-v2-unsplit"))
def test_option_of_vllm_keeps_images_in_one_step(result: Result) -> None:
    assert [result(name)["planned"]["splits"] for name in names("gemma3-v2-unsplit")] == [0, 0]


@pytest.mark.full
@pytest.mark.engines(*names("qwen3-v2-together"))
def test_hits_and_misses_of_one_step_give_stock_tokens(result: Result) -> None:
    stock, found = map(result, names("qwen3-v2-together"))
    assert found["planned"]["most_requests"] > 2
    assert tokens(found, "together") == tokens(stock, "together")
    images = {image for turn in (*BEFORE, *TOGETHER) for image in turn}
    assert sum(encodes(found, "together")) == len(images)
    assert found["counters"]["vllm:vitcache_hits tier=device"] > 0
    assert found["counters"]["vllm:vitcache_hits tier=host"] > 0


@pytest.mark.full
@pytest.mark.engines(*names("qwen3-v2-preempted"))
def test_preempted_requests_give_stock_tokens_without_a_second_encode(result: Result) -> None:
    stock, found = map(result, names("qwen3-v2-preempted"))
    assert min(run["planned"]["preemptions"] for run in (stock, found)) > 0
    assert tokens(found, "long") == tokens(stock, "long")
    assert sum(encodes(found, "long")) == len({image for turn in LONG for image in turn})


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
