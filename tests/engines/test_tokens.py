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


def steps(result: dict[str, Any], counter: str) -> dict[str, float]:
    """The values of vitcache's counter of steps by their label; labels with 0 are left out."""
    start = f"vllm:vitcache_{counter} "
    found = {name: value for name, value in result["counters"].items() if name.startswith(start)}
    assert found
    return {name.removeprefix(start): value for name, value in found.items() if value}


FULL = pytest.mark.full
IN_CHUNKS = [both(f"{name}-v2-chunks", FULL) for name in FAMILIES]
PAIRS = [
    both("qwen3-whole"),
    both("qwen3-chunks"),
    *(both(f"{name}-whole", FULL) for name in OTHERS),
    both("qwen2_5-chunks", FULL),
]
PLACED_PAIRS = [
    both("qwen3-v2-whole"),
    *(both(f"{name}-v2-whole", FULL) for name in OTHERS),
    *IN_CHUNKS,
    both("gemma3-v2-unsplit", FULL),
]


@pytest.mark.parametrize("first", [*PAIRS, *PLACED_PAIRS])
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


@pytest.mark.parametrize("first", PLACED_PAIRS)
def test_all_rows_of_images_are_placed_in_v2(first: str, result: Result) -> None:
    found = result(names(first)[1])
    assert set(steps(found, "placements")) == {"text=table"}
    assert steps(found, "placements")["text=table"] >= len(TURNS)
    assert steps(found, "merges") == {}


@pytest.mark.parametrize("first", PAIRS)
def test_no_rows_are_placed_in_v1(first: str, result: Result) -> None:
    found = result(names(first)[1])
    assert steps(found, "placements") == {}
    assert set(steps(found, "merges")) == {"reason=model_runner"}


@pytest.mark.full
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(
            name, marks=pytest.mark.engines(f"{name}-v2-whole-vitcache", f"{name}-v2-chunks-vitcache")
        )
        for name in FAMILIES
    ],
)
def test_chunks_place_the_rows_of_whole_prompts(family: str, result: Result) -> None:
    whole, chunks = (result(f"{family}-v2-{form}-vitcache") for form in ("whole", "chunks"))
    assert steps(chunks, "placements")["text=table"] > steps(whole, "placements")["text=table"]
    rows = "vllm:vitcache_placed_rows"
    assert chunks["counters"][rows] == whole["counters"][rows] > NUM_IMAGES


@pytest.mark.full
@pytest.mark.engines("qwen3-v2-whole-stock", "qwen3-v2-merged")
def test_place_rows_false_leaves_the_merge_to_vllm(result: Result) -> None:
    stock, found = result("qwen3-v2-whole-stock"), result("qwen3-v2-merged")
    assert tokens(found) == tokens(stock)
    assert sum(encodes(found)) == NUM_IMAGES
    assert steps(found, "placements") == {}
    assert set(steps(found, "merges")) == {"reason=option"}


@pytest.mark.parametrize("first", IN_CHUNKS)
def test_steps_of_chunks_end_inside_of_images(first: str, result: Result) -> None:
    for name in names(first):
        assert result(name)["planned"]["splits"] > 0


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
    assert set(steps(found, "placements")) == {"text=table"}
    assert steps(found, "merges") == {}
    assert found["counters"]["vllm:vitcache_hits tier=device"] > 0
    assert found["counters"]["vllm:vitcache_hits tier=host"] > 0


@pytest.mark.full
@pytest.mark.engines(*names("qwen3-v2-preempted"))
def test_preempted_requests_give_stock_tokens_without_a_second_encode(result: Result) -> None:
    stock, found = map(result, names("qwen3-v2-preempted"))
    assert min(run["planned"]["preemptions"] for run in (stock, found)) > 0
    assert tokens(found, "long") == tokens(stock, "long")
    assert set(steps(found, "placements")) == {"text=table"}
    assert steps(found, "merges") == {}
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
