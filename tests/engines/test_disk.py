"""A real `LLM` over a disk: a later engine encodes nothing that the disk has, and gives equal answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from engine_runner.pool import Pool

Result = Callable[[str], dict[str, Any]]
FULL = pytest.mark.full
RUNNERS = ["qwen3-disk", pytest.param("qwen3-v2-disk", marks=FULL)]


@pytest.fixture(scope="module")
def written(pool: Pool, result: Result) -> Callable[[str], dict[str, Any]]:
    """Runs the first engine of a disk, once, on an empty folder."""
    known: dict[str, dict[str, Any]] = {}

    def run(name: str) -> dict[str, Any]:
        if name not in known:
            shutil.rmtree(pool.folder / "disks" / name, ignore_errors=True)
            known[name] = result(f"{name}-first")["recurring"]
        return known[name]

    return run


def tokens(answers: list[dict[str, Any]]) -> list[list[int]]:
    return [answer["tokens"] for answer in answers]


def encodes(answers: list[dict[str, Any]]) -> list[int]:
    return [answer["encodes"] for answer in answers]


@pytest.mark.parametrize("name", RUNNERS)
def test_later_engine_encodes_no_stored_image_and_gives_the_same_tokens(
    name: str, written: Callable[[str], dict[str, Any]], result: Result
) -> None:
    first = written(name)
    assert first["is_flushed"]
    assert encodes(first["answers"]) == [1, 2, 1, 0, 0, 0, 0, 0, 0]
    later = result(f"{name}-second")
    assert encodes(later["again"]) == [0, 0, 0]
    assert tokens(later["again"]) == tokens(first["answers"][:3])
    assert later["counters"]["vllm:vitcache_hits tier=lower"] == 4
    assert later["counters"]["vllm:vitcache_tier_fetches tier=disk result=hit"] == 4


@FULL
@pytest.mark.parametrize("name", ["qwen3-disk", "qwen3-v2-disk"])
def test_engine_with_another_name_of_the_weights_encodes_every_image(
    name: str, written: Callable[[str], dict[str, Any]], result: Result
) -> None:
    first, other = written(name), result(f"{name}-renamed")
    assert encodes(other["again"]) == [1, 2, 1]
    assert tokens(other["again"]) == tokens(first["answers"][:3])


@FULL
@pytest.mark.parametrize("name", ["qwen3-disk", "qwen3-v2-disk"])
def test_engine_over_a_hanging_disk_encodes_and_gives_the_same_tokens(
    name: str, written: Callable[[str], dict[str, Any]], result: Result
) -> None:
    first, hung = written(name), result(f"{name}-hung")
    assert encodes(hung["hung"]) == [1, 2, 1]
    assert tokens(hung["hung"]) == tokens(first["answers"][:3])
    counters = hung["counters"]
    assert counters["vllm:vitcache_tier_openings tier=disk"] == 1
    assert counters["vllm:vitcache_tier_waits"] == 1  # the later requests ask a disk that is off
    assert counters["vllm:vitcache_tier_fetches tier=disk result=refused"] == 3
