"""Requests that wait for a disk, in SGLang's own queue: held, aborted, refused, and late."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import Modality
from sglang.srt.mem_cache.base_prefix_cache import InsertParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang_scene.prompts import Prompt, images, make_item
from sglang_scene.restarts import LONG_S, Server, serving
from sglang_scene.waiting import WaitingScheduler, enter, make_request

from vitcache.adapters.sglang import item_factory, model_cache, service, stats
from vitcache.adapters.sglang.arrivals import uncached_tokens
from vitcache.adapters.sglang.held_requests import HeldRequests
from vitcache.testing import inspect
from vitcache.tiers.memory_tier import MemoryTier
from vitcache.tiers.protocol import FetchOutcome, Transfer


class SlowTier(MemoryTier):
    """A tier that reads nothing while a test has closed its gate."""

    def __init__(self) -> None:
        super().__init__("64MiB")
        self.gate = Event()
        self.gate.set()
        self.asked = Event()

    def fetch(self, fetches: Sequence[Transfer]) -> list[FetchOutcome]:
        self.asked.set()
        assert self.gate.wait(LONG_S)
        return super().fetch(fetches)


class Scene:
    """A server over a slow tier, and the clock of its held requests."""

    def __init__(self, server: Server, tier: SlowTier) -> None:
        self.server, self.tier, self.now = server, tier, 100.0
        service.SERVICE.arrivals.held = HeldRequests(service.SERVICE.counts, lambda: self.now)

    @property
    def scheduler(self) -> WaitingScheduler:
        return self.server.scheduler

    def enter(self, name: str, prompt: Prompt, **named: Any) -> Any:
        [request] = enter(self.scheduler, make_request(name, prompt, **named))
        return request

    def right(self, *prompts: Prompt) -> bool:
        return self.server.step(prompts)


KEPT = 3  # images of `scene` that are in the tier alone


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scene]:
    """The tier has three images, the memory of the process none of them, and the tier's gate is closed."""
    tier = SlowTier()
    monkeypatch.setattr(model_cache, "make_tiers", lambda options: (tier,))
    with serving(tmp_path) as first:
        for _ in range(3):
            assert first.answer(images(KEPT))
    tier.asked.clear()
    with serving(tmp_path) as second:
        tier.gate.clear()
        try:
            yield Scene(second, tier)
        finally:
            tier.gate.set()


def disk() -> Any:
    """The counts of the tier."""
    [cache] = stats().caches
    [found] = cache.tiers
    return found


def counted() -> tuple[int, int]:
    return stats().held, stats().late


def test_request_is_held_until_its_rows_are_there_and_other_requests_are_not(scene: Scene) -> None:
    prompt = images(KEPT)
    scene.enter("image", prompt)
    scene.enter("text", Prompt(5))
    assert scene.scheduler.take() == ["text"]
    scene.enter("more text", Prompt(7))
    assert scene.tier.asked.wait(LONG_S)
    assert scene.scheduler.take() == ["more text"]
    assert scene.scheduler.queue == ["image"]
    scene.tier.gate.set()
    assert scene.scheduler.take_all("image") == [["image"]]
    assert scene.right(prompt)
    assert (scene.server.tower.num_encodes, counted()) == (0, (1, 0))


def test_late_request_runs_when_its_time_is_over_and_is_right(scene: Scene) -> None:
    prompt = images(KEPT)
    scene.enter("image", prompt)
    scene.now += LONG_S - 0.5
    assert scene.scheduler.take() == []
    scene.now += 0.5
    assert scene.scheduler.take() == ["image"]
    assert scene.right(prompt)
    assert (scene.server.tower.num_encodes, counted()) == (KEPT, (1, 1))


def test_features_of_fetched_images_are_hashed_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    monkeypatch.setattr(item_factory, "wait_until_offloaded", lambda source, feature: read.append(source))
    scene.tier.gate.set()
    for _ in range(2):  # a turn of a session has the same items again
        prompt = images(KEPT)
        scene.enter("image", prompt)
        scene.scheduler.take_all("image")
        assert scene.right(prompt)
        assert read == prompt.items
        scene.enter("next turn", prompt)
        assert scene.scheduler.take() == ["next turn"]
        assert scene.right(prompt)
        assert read == prompt.items
        read.clear()


def test_disk_that_hangs_holds_no_further_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The breaker opens when the first fetch is late: the disk is not asked for the next one."""
    tier = SlowTier()
    monkeypatch.setattr(model_cache, "make_tiers", lambda options: (tier,))
    with serving(tmp_path) as first:
        for _ in range(3):
            assert first.answer(images(KEPT))
    with serving(tmp_path, wait_s=0.05) as second:
        tier.gate.clear()
        assert second.answer(images(KEPT))
        while not disk().is_open:  # until the time of the fetch is over, too
            gc.collect()
        late = disk().late
        for _ in range(2):
            assert second.answer(images(KEPT + 1))
        assert (disk().late, disk().openings) == (late, 1)
        assert second.tower.num_encodes == KEPT + 1
        tier.gate.set()


def test_held_request_can_be_aborted_and_is_freed(scene: Scene) -> None:
    prompt = images(KEPT)
    inputs = weakref.ref(prompt.inputs)
    scene.enter("image", prompt)
    assert scene.scheduler.take() == []
    scene.scheduler.abort("image")
    assert (scene.scheduler.queue, scene.scheduler.aborted) == ([], ["image"])
    assert prompt.items[0].feature is None  # released as without vitcache
    scene.now += LONG_S
    assert scene.scheduler.take() == []
    assert len(service.SERVICE.arrivals.held) == 0
    scene.tier.gate.set()
    del prompt
    while inputs() is not None:  # until the fetch has ended
        gc.collect()


def test_held_requests_count_in_the_length_of_the_queue(scene: Scene) -> None:
    scene.scheduler.max_queued_requests = 2
    scene.enter("image", images(KEPT))
    scene.scheduler.ready = [make_request(name, Prompt(5)) for name in ("first", "second")]
    # The grammars get ready inside of the choice: one of the two finds a full queue, as with stock SGLang.
    assert scene.scheduler.take() == ["first"]
    assert (scene.scheduler.queue, scene.scheduler.aborted) == (["image"], ["second"])


def test_request_whose_grammar_is_ready_waits_for_its_rows(scene: Scene) -> None:
    scene.scheduler.ready = [make_request("image", images(KEPT)), make_request("text", Prompt(5))]
    assert scene.scheduler.take() == ["text"]
    assert scene.scheduler.queue == ["image"]
    scene.tier.gate.set()
    assert scene.scheduler.take_all("image") == [["image"]]


def test_retracted_request_waits_again_if_its_rows_are_gone(scene: Scene) -> None:
    request = scene.enter("image", images(KEPT))
    scene.tier.gate.set()
    scene.scheduler.take_all("image")
    assert len(service.SERVICE.arrivals.held) == 0
    scene.scheduler._add_request_to_queue(request, is_retracted=True)  # its rows are in the host tier
    assert len(service.SERVICE.arrivals.held) == 0
    assert scene.scheduler.take() == ["image"]
    [cache] = service.SERVICE.models.caches
    for key in inspect(cache).eviction_order("host"):
        cache.discard(key, tier="host")
    scene.tier.gate.clear()
    scene.scheduler._add_request_to_queue(request, is_retracted=True)
    assert scene.scheduler.take() == []


def test_request_whose_images_are_in_the_prefix_cache_is_not_held(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = images(KEPT)

    def match(request: Any, tree_cache: Any) -> None:
        assert tree_cache is scene.scheduler.tree_cache
        request.num_matched_prefix_tokens = matched

    monkeypatch.setattr("sglang.srt.mem_cache.common.match_kv_cache", match)
    [*_, (_, last)] = prompt.items[-1].offsets
    matched = last + 1
    scene.enter("image", prompt)
    assert scene.scheduler.take() == ["image"]
    matched = last  # the KV of the last token of the last image is missing
    scene.enter("again", prompt)
    assert scene.scheduler.take() == []
    scene.tier.gate.set()
    scene.scheduler.take_all("again")
    [cache] = stats().caches
    assert cache.tiers[0].hits == 1


def test_tokens_of_the_prefix_cache_are_not_fetched(scene: Scene) -> None:
    prompt = images(KEPT)
    [_, (first, _)] = [item.offsets[0] for item in prompt.items[:2]]
    request = make_request("image", prompt)
    assert uncached_tokens(scene.scheduler, request) == (0, len(prompt))
    key = RadixKey(request.origin_input_ids[:first], request.extra_key)
    scene.scheduler.tree_cache.insert(InsertParams(key=key, value=torch.arange(first)))
    assert uncached_tokens(scene.scheduler, request) == (first, len(prompt))
    request.session = SimpleNamespace(streaming=True)
    assert uncached_tokens(scene.scheduler, request) == (0, len(prompt))


ODD = {
    "no items": lambda: Prompt(5),
    "precomputed": lambda: precomputed(),
    "no offsets": lambda: without_offsets(),
    "of another model": lambda: Prompt(9, [make_item(77, (2, 5), modality=Modality.AUDIO)]),
}


def precomputed() -> Prompt:
    item = make_item(0, (2, 5))
    item.precomputed_embeddings, item.feature = item.feature, None
    return Prompt(8, [item])


def without_offsets() -> Prompt:
    item = make_item(0, (2, 5))
    item.offsets = None
    return Prompt(8, [item])


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_request_without_rows_on_the_disk_is_taken(scene: Scene, make: Callable[[], Prompt]) -> None:
    scene.enter("odd", make())
    assert scene.scheduler.take_all("odd") == [["odd"]]


def test_fetch_that_fails_ends_no_engine(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr("sglang.srt.mem_cache.common.match_kv_cache")
    for name in ("first", "second"):
        prompt = images(KEPT)
        scene.enter(name, prompt)
        assert scene.scheduler.take() == [name]
        assert scene.right(prompt)
    assert [record.getMessage() for record in caplog.records if "fetch" in record.getMessage()] == [
        "vitcache cannot fetch rows from the tiers below the host tier"
    ]


def test_disabled_plug_in_holds_no_request(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    scene.enter("image", images(KEPT))
    assert scene.scheduler.take() == ["image"]
    assert not scene.tier.asked.is_set()
