"""A Mooncake store below the host tier: another server finds the images, and a server without it encodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_runner.cases import STORE
from sglang_scene.prompts import images
from sglang_scene.restarts import serving

from vitcache.adapters.sglang import stats
from vitcache.bench.harness.store_cluster import free_port, store_cluster

NUM_IMAGES = 3
SAME = ("tokens", "logprobs", "prompt_logprobs", "prompt_tokens")
WITHOUT_DISK = {"disk": None, "disk_bytes": None}
Result = Callable[[str], dict[str, Any]]


def tiers() -> list[Any]:
    """The counts of the tiers below the host tier."""
    [cache] = stats().caches
    return list(cache.tiers)


@pytest.mark.parametrize("disk", [WITHOUT_DISK, {}], ids=["alone", "below a disk"])
def test_another_server_encodes_no_image_of_the_store(tmp_path: Path, disk: dict[str, None]) -> None:
    with store_cluster(num_nodes=1, node_bytes=64 << 20) as cluster:
        options = {"mooncake": cluster.address, "mooncake_worth": None, **disk}
        for number, num_encodes in enumerate((NUM_IMAGES, 0)):
            with serving(tmp_path / str(number), **options) as server:
                for _ in range(3):
                    assert server.answer(images(NUM_IMAGES))
                assert server.tower.num_encodes == num_encodes
        with serving(tmp_path / "named", **options, weights_name="v2") as other:
            assert other.answer(images(NUM_IMAGES))
            assert other.tower.num_encodes == NUM_IMAGES


def test_server_without_a_master_encodes_and_answers(tmp_path: Path) -> None:
    options = {"mooncake": f"127.0.0.1:{free_port()}", **WITHOUT_DISK}
    with serving(tmp_path, **options) as server:
        for _ in range(3):
            assert server.answer(images(NUM_IMAGES))
        assert server.tower.num_encodes == NUM_IMAGES
        [store] = tiers()
        assert (store.name, store.is_open, store.hits, store.stored) == ("mooncake", True, 0, 0)
        assert stats().errors == 0


@pytest.fixture(scope="module")
def first(result: Result) -> Iterator[dict[str, Any]]:
    """The first engine of a store. The processes of the store run until the last test has ended."""
    with store_cluster() as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORE, cluster.address)
        yield result("store-first")


@pytest.mark.full
def test_second_engine_encodes_nothing_and_gives_the_same_answers(
    first: dict[str, Any], result: Result
) -> None:
    assert [turn["encodes"] for turn in first["kept"]] == [1, 1, 1, 0, 0]
    second = result("store-second")
    again, new = second["found"]
    assert [turn["encodes"] for turn in (again, new)] == [0, 1]
    assert {name: again[name] for name in SAME} == {name: first["kept"][-1][name] for name in SAME}
    [store] = second["infos"][-1]["caches"][0]["tiers"]
    assert (store["name"], store["hits"], store["failures"], store["is_open"]) == (
        "mooncake",
        NUM_IMAGES,
        0,
        False,
    )


@pytest.mark.full
def test_engine_without_a_master_encodes_each_image_once_and_gives_the_same_answers(
    first: dict[str, Any], result: Result
) -> None:
    alone = result("store-alone")
    assert [turn["encodes"] for turn in alone["chat"]] == [1, 1, 1, 0]
    last = alone["chat"][-1]
    assert {name: last[name] for name in SAME} == {name: first["kept"][-1][name] for name in SAME}
    [store] = alone["infos"][-1]["caches"][0]["tiers"]
    assert (store["is_open"], store["stored"]) == (True, 0)


@pytest.mark.full
def test_ranks_that_start_again_find_the_images_of_the_store(first: dict[str, Any], result: Result) -> None:
    """The number of ranks is a part of the name of the weights."""
    found = result("store-ranks")
    assert [turn["encodes"] for turn in found["kept"]] == [1, 1, 1, 0, 0]
    again, new = found["restarted"]
    assert [turn["encodes"] for turn in (again, new)] == [0, 1]
    assert {name: again[name] for name in SAME} == {name: found["kept"][-1][name] for name in SAME}
