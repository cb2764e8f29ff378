"""Prefetches ask the tiers before they encode; `embed` and `place` never do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import Tower, embed, feature
from tiers.planted_tier import PlantedTier

from vitcache import Chunk, EmbeddingCache, Item, Namespace, Span, VisionPipeline, WriteBack
from vitcache.tiers import MemoryTier

SECONDS = 60
NAMESPACE = Namespace("model", "revision 1")


def open_cache(tier: Any, **options: Any) -> EmbeddingCache:
    """A new cache above a tier, as after a restart."""
    options = {"weights_name": "model", "write_back": WriteBack(hits=0), "fetch_timeout_s": SECONDS} | options
    return make_cache(8, host_pages=8, tiers=[tier], **options)


def make_items(count: int = 3, **options: Any) -> list[Item]:
    return [Item(feature(seed, 2), Span(2 * seed, 2), **options) for seed in range(count)]


def prefetch(pipeline: VisionPipeline, items: Sequence[Item], **options: Any) -> None:
    pipeline.prefetch([Chunk(items, 0, 8)], **options).wait(SECONDS)


def store(tier: Any, items: Sequence[Item], namespace: Any = NAMESPACE, **options: Any) -> None:
    """Encode items in a first process, and write their rows to the tier."""
    tower = Tower()
    with open_cache(tier, **options) as cache, VisionPipeline(tower, cache, namespace=namespace) as pipeline:
        assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []
        assert len(tower.encoded) == len(items)
        assert cache.flush(SECONDS)


@pytest.mark.parametrize("options", [{}, {"encode": False}], ids=["encode", "no encode"])
def test_prefetch_after_a_restart_encodes_nothing_that_was_stored(options: dict[str, Any]) -> None:
    tier, tower = MemoryTier(1 << 20), Tower()
    store(tier, make_items())
    with open_cache(tier) as cache, VisionPipeline(tower, cache, namespace=NAMESPACE) as pipeline:
        items = make_items()
        prefetch(pipeline, items, **options)
        assert cache.stats().tiers[0].hits == 3
        assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []
        assert tower.calls == []


def test_fetch_waits_for_the_tiers_and_embed_encodes_nothing_that_was_stored() -> None:
    tier, tower = MemoryTier(1 << 20), Tower()
    store(tier, make_items())
    with open_cache(tier) as cache, VisionPipeline(tower, cache, namespace=NAMESPACE) as pipeline:
        items = make_items(4)
        pipeline.fetch([Chunk(items, 0, 8)])
        pipeline.fetch([Chunk(items[:3], 0, 6)])  # all of them are in the cache
        counts = cache.stats().tiers[0]
        assert (counts.hits, counts.misses) == (3, 1)
        assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []
        assert tower.encoded == items[3:]
    with pytest.raises(RuntimeError, match="the pipeline was closed"):
        pipeline.fetch([])


def test_fetch_without_tiers_loads_nothing() -> None:
    loads: list[int] = []
    with VisionPipeline(Tower(), make_cache()) as pipeline:
        pipeline.fetch([Chunk([Item(lambda: loads.append(1), Span(0, 2))], 0, 4)])
    assert loads == []


def test_prefetch_with_agree_fetches_and_the_step_finds_hits() -> None:
    tier, tower, misses = MemoryTier(1 << 20), Tower(), []
    store(tier, make_items())

    def agree(miss: torch.Tensor) -> torch.Tensor:
        misses.append(miss.tolist())
        return miss

    with (
        open_cache(tier) as cache,
        VisionPipeline(tower, cache, namespace=NAMESPACE, agree=agree) as pipeline,
    ):
        items = make_items()
        prefetch(pipeline, items)
        assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []
    assert misses == [[False] * 3]
    assert tower.calls == []


def test_prefetch_encodes_what_no_tier_has_and_fetches_the_rest() -> None:
    tier, tower = MemoryTier(1 << 20), Tower()
    store(tier, make_items(2))
    with open_cache(tier) as cache, VisionPipeline(tower, cache, namespace=NAMESPACE) as pipeline:
        items = make_items(4)
        prefetch(pipeline, items)
        assert tower.encoded == items[2:]
        assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []
        assert tower.encoded == items[2:]


OTHERS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "weights": ({"weights_name": "other"}, NAMESPACE, {}),
    "no name": ({"weights_name": None}, NAMESPACE, {}),
    "dtype": ({"dtype": torch.float16}, NAMESPACE, {}),
    "tenant of the pipeline": ({}, Namespace("model", "revision 1", tenant="b"), {}),
    "tenant of the items": ({}, NAMESPACE, {"tenant": "b"}),
    "adapter": ({}, Namespace("model", "revision 1", adapter="b"), {}),
}


@pytest.mark.parametrize(("of_cache", "namespace", "of_items"), OTHERS.values(), ids=OTHERS)
def test_prefetch_finds_nothing_of_another(
    of_cache: dict[str, Any], namespace: Any, of_items: dict[str, Any]
) -> None:
    tier, tower = MemoryTier(1 << 20), Tower()
    store(tier, make_items())
    with open_cache(tier, **of_cache) as cache, VisionPipeline(tower, cache, namespace=namespace) as pipeline:
        prefetch(pipeline, make_items(**of_items))
        assert len(tower.encoded) == 3
        assert cache.stats().tiers[0].hits == 0


def test_items_of_several_tenants_are_fetched_in_one_prefetch() -> None:
    tier, tower = MemoryTier(1 << 20), Tower()

    def items() -> list[Item]:
        return [
            Item(feature(n, 2), Span(2 * n, 2), tenant=tenant) for n, tenant in enumerate([None, "a", "b"])
        ]

    store(tier, items())
    with open_cache(tier) as cache, VisionPipeline(tower, cache, namespace=NAMESPACE) as pipeline:
        assert cache.forget_tenant("a") == 1
        prefetch(pipeline, items())
        assert [item.tenant for item in tower.encoded] == ["a"]


def test_rows_that_are_late_are_encoded_and_enter_the_cache_when_they_arrive() -> None:
    tier, tower = PlantedTier(), Tower()
    store(tier, make_items())
    pause = tier.pause("fetch")
    with (
        open_cache(tier, fetch_timeout_s=0.001) as cache,
        VisionPipeline(tower, cache, namespace=NAMESPACE, max_rows_per_encode=2) as pipeline,
    ):
        items = make_items()
        handle = pipeline.prefetch([Chunk(items, 0, 8)], encode=False)
        handle.wait(SECONDS)  # it ends at its deadline, and the tier has not answered
        pause.started.wait(SECONDS)
        assert embed(pipeline, [Chunk(items[:1], 0, 8)], 8) == []
        assert tower.encoded == items[:1]
        assert cache.stats().tiers[0].late > 0
        pause.release()
        assert cache.flush(SECONDS)
        assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []
        assert tower.encoded == items[:1]


FAULTS: dict[str, Callable[[PlantedTier], object]] = {
    "exists raises": lambda tier: tier.fail("exists", OSError("planted")),
    "fetch raises": lambda tier: tier.fail("fetch", OSError("planted")),
    "damaged": PlantedTier.return_damaged,
    "unsafe": PlantedTier.return_unsafe,
    "open raises": lambda tier: tier.fail("open", OSError("planted")),
}


@pytest.mark.parametrize("plant", FAULTS.values(), ids=FAULTS)
def test_a_failing_tier_costs_encodes_and_changes_no_row(plant: Callable[[PlantedTier], object]) -> None:
    tier, tower = PlantedTier(), Tower()
    store(tier, make_items())
    plant(tier)
    with open_cache(tier) as cache, VisionPipeline(tower, cache, namespace=NAMESPACE) as pipeline:
        items = make_items()
        prefetch(pipeline, items)
        assert len(tower.encoded) > 0
        assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []


def test_embed_and_place_call_no_tier() -> None:
    tier, tower = PlantedTier(), Tower()
    store(tier, make_items())
    calls = tier.calls.copy()
    with (
        open_cache(tier, write_back=WriteBack(hits=100)) as cache,
        VisionPipeline(tower, cache, namespace=NAMESPACE) as pipeline,
    ):
        items = make_items()
        for _ in range(2):
            assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []
            assert pipeline.place([Chunk(items, 0, 8)], torch.zeros(8, 4)).errors == []
        assert cache.flush(SECONDS)
        assert len(tower.encoded) == 3
        assert [tier.calls[name] - calls[name] for name in ("exists", "fetch", "store", "claim")] == [0] * 4


def test_cancel_of_a_prefetch_cancels_its_fetch() -> None:
    tier, tower = PlantedTier(), Tower()
    store(tier, make_items())
    pause, fetches = tier.pause("exists"), tier.calls["fetch"]
    with open_cache(tier) as cache, VisionPipeline(tower, cache, namespace=NAMESPACE) as pipeline:
        handle = pipeline.prefetch([Chunk(make_items(), 0, 8)])
        pause.started.wait(SECONDS)  # the worker of the tier has the fetch, that of the pipeline waits
        pipeline.cancel(handle)
        pause.release()
        handle.wait(SECONDS)
        assert handle.done
        assert cache.flush(SECONDS)
        assert tower.calls == []
        assert tier.calls["fetch"] == fetches


@pytest.mark.parametrize("has_tiers", [True, False], ids=["tiers", "no tiers"])
def test_fetch_of_a_closed_cache_or_pipeline_raises(has_tiers: bool) -> None:
    cache = open_cache(MemoryTier(1 << 20)) if has_tiers else make_cache(8)
    pipeline = VisionPipeline(Tower(), cache)
    cache.close()
    for items in ([], make_items()):
        with pytest.raises(RuntimeError, match="the cache was closed"):
            pipeline.fetch([Chunk(items, 0, 8)] if items else [])
    pipeline.close()
    with pytest.raises(RuntimeError, match="the pipeline was closed"):
        pipeline.fetch([])


def test_pipeline_measures_its_encodes_only_for_a_tier_with_a_worth() -> None:
    for worth, widths in ((None, []), (0.5, [4])):
        tier = PlantedTier()
        tier.worth = worth
        with open_cache(tier) as cache, VisionPipeline(Tower(), cache, namespace=NAMESPACE) as pipeline:
            assert embed(pipeline, [Chunk(make_items(), 0, 8)], 8) == []
            assert list(cache.stats().encode_ms_per_row) == widths
