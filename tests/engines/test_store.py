"""Real `LLM`s that share a Mooncake store: the second one encodes nothing that the first one has encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_runner.cases import STORE

from vitcache.bench.harness.store_cluster import store_cluster

pytestmark = pytest.mark.full
RUNNERS = pytest.mark.parametrize("name", ["qwen3-store", "qwen3-v2-store"])
Result = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def first(result: Result) -> Iterator[Result]:
    """Runs the first engine of a store. The processes of the store run until the last test has ended."""
    with store_cluster() as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORE, cluster.address)
        yield lambda name: result(f"{name}-first")["recurring"]


def column(answers: list[dict[str, Any]], name: str) -> list[Any]:
    return [answer[name] for answer in answers]


@RUNNERS
def test_second_engine_encodes_nothing_and_gives_the_same_tokens(
    name: str, first: Result, result: Result
) -> None:
    encoded = first(name)
    assert encoded["is_flushed"]
    assert column(encoded["answers"], "encodes") == [1, 2, 1, 0, 0, 0, 0, 0, 0]
    second = result(f"{name}-second")
    assert column(second["again"], "encodes") == [0, 0, 0]
    assert column(second["again"], "tokens") == column(encoded["answers"], "tokens")[:3]
    assert second["counters"]["vllm:vitcache_hits tier=lower"] == 4
    assert second["counters"]["vllm:vitcache_tier_fetches tier=mooncake result=hit"] == 4


@RUNNERS
def test_engine_without_a_master_encodes_each_image_once_and_gives_the_same_tokens(
    name: str, first: Result, result: Result
) -> None:
    encoded, alone = first(name), result(f"{name}-alone")
    assert column(alone["alone"], "encodes") == [1, 2, 1, 0, 0, 0]
    assert column(alone["alone"], "tokens") == 2 * column(encoded["answers"], "tokens")[:3]
    assert alone["counters"]["vllm:vitcache_tier_openings tier=mooncake"] > 0
