"""Updates of the weights and flushes reach the rows of every tier, and SGLang's own cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sglang_scene.language_model import HIDDEN
from sglang_scene.plugin import plugged
from sglang_scene.prompts import images
from sglang_scene.tower import Tower
from sglang_scene.updates import RELEASE, REQUESTS, Engine, one_rank
from sglang_scene.waiting import WaitingScheduler, enter, make_request

from vitcache.adapters.sglang import arrivals, model_cache, service, stats
from vitcache.adapters.sglang.model_cache import StepShape
from vitcache.cache.policies import POLICIES
from vitcache.cache.stats import CacheStats

IMAGE_BYTES = 10 * HIDDEN * torch.bfloat16.itemsize
DISK = {"host_bytes": 1 << 20, "disk": "folder", "disk_bytes": 64 << 20, "weights_name": "v1"}
TWO_TIERS = {"device_bytes": IMAGE_BYTES, "host_bytes": 1 << 20}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


def changed(engine: Engine, call: Callable[[], Any]) -> Any:
    """Change the weights as another process does, and call SGLang."""
    engine.load()
    return call()


CALLS: dict[str, Callable[[Engine], Any]] = {
    **{name: lambda engine, name=name: engine.update(name) for name in REQUESTS},  # type: ignore[misc]
    "flush_cache": lambda engine: changed(engine, engine.flush),
    "release_memory_occupation": lambda engine: changed(
        engine, lambda: engine.manager.release_memory_occupation(RELEASE)
    ),
}


def cache() -> CacheStats:
    """The statistics of the only cache."""
    [found] = stats().caches
    return found


IsRight = Callable[[], bool]


class Place(NamedTuple):
    """A place of old rows.

    `options` are those of the plug-in. `fill` puts rows there, and returns a function that runs a step which
    would read them: whether its rows are those of the present weights.
    """

    options: dict[str, Any]
    fill: Callable[[Engine], IsRight]


def fill_device(engine: Engine) -> IsRight:
    assert engine.is_right()
    assert (cache().entries, cache().host_bytes) == (3, 0)
    return engine.is_right


def fill_host(engine: Engine) -> IsRight:
    """The device tier has space for one of three images: steps read two of them in the host tier."""
    for _ in range(4):
        assert engine.is_right()
    assert cache().host.hits > 0
    assert cache().host_bytes >= 2 * IMAGE_BYTES
    return engine.is_right


def fill_early(engine: Engine) -> IsRight:
    """The cache was made when the scheduler started."""
    service.SERVICE.make_early(engine.tower, StepShape(HIDDEN, 0, torch.bfloat16, torch.device("cpu")))
    assert cache().entries == 0
    return fill_device(engine)


def fill_two_models(engine: Engine) -> IsRight:
    """Each model has a cache. They share their weights."""
    first, second = engine.tower, Tower(levels=1)
    first.weight = second.weight[:, :HIDDEN]
    for engine.tower in (first, second):
        assert engine.is_right()
    assert [each.entries for each in stats().caches] == [3, 3]

    def are_right() -> bool:
        found = []
        for engine.tower in (first, second):
            found.append(engine.is_right())
        assert found[0] == found[1]
        return found[0]

    return are_right


@contextmanager
def disabled() -> Iterator[None]:
    os.environ["VITCACHE_DISABLE"] = "1"
    try:
        yield
    finally:
        del os.environ["VITCACHE_DISABLE"]


def fill_sglangs_own(engine: Engine) -> IsRight:
    """SGLang's own function computes the steps, and stores rows in its own cache."""

    def is_right() -> bool:
        with disabled():
            return engine.is_right()

    assert is_right()
    assert is_right()
    assert (engine.tower.num_encodes, stats().steps) == (3, 0)
    return is_right


def fill_kept(engine: Engine) -> IsRight:
    """The tier rejects the image, whose rows are kept for the next chunk of the request."""
    first, second, last = images(1, rows=20).chunks(10, 10, 15)
    assert engine.is_right(first)
    assert engine.is_right(second)
    assert (engine.tower.num_encodes, cache().entries) == (1, 0)
    return lambda: engine.is_right(last)


def fill_disk(engine: Engine) -> IsRight:
    """The rows are on the disk, as after a restart, and no tier of the memory has them."""
    for _ in range(3):
        assert engine.is_right()
    write_disk()
    service.SERVICE.close()
    service.SERVICE.make_early(engine.tower, StepShape(HIDDEN, 0, torch.bfloat16, torch.device("cpu")))
    return lambda: is_right_behind_the_fetch(engine)


def write_disk() -> None:
    """Wait until the disk has all three images."""
    [only] = service.SERVICE.models.caches
    assert only.flush(60)
    assert cache().tiers[0].stored == 3


def is_right_behind_the_fetch(engine: Engine) -> bool:
    """Run a step of three images, behind the fetch of their rows."""
    prompt = images(3)
    scheduler = WaitingScheduler(engine.tower)
    enter(scheduler, make_request("request", prompt))
    scheduler.take_all("request")
    return engine.is_right([prompt.window()])


PLACES = {
    "device": Place({}, fill_device),
    "trusted hash": Place({"trust_engine_hash": True}, fill_device),
    "ring": Place({"ring_bytes": 256}, fill_device),
    **{f"host, {policy}": Place(TWO_TIERS | {"policy": policy}, fill_host) for policy in POLICIES},
    "early": Place({}, fill_early),
    "two models": Place({}, fill_two_models),
    "SGLang's own": Place({}, fill_sglangs_own),
    "disk": Place(DISK, fill_disk),
    "kept": Place({"device_bytes": IMAGE_BYTES}, fill_kept),
}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder of `DISK`. Requests wait for it as long as it takes."""
    monkeypatch.chdir(tmp_path)
    for module in (model_cache, arrivals):
        monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 60.0)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_rows_after_the_call_are_those_of_the_new_weights(
    place: Place, call: Callable[[Engine], Any]
) -> None:
    with plugged(**place.options), torch.no_grad():
        engine = Engine()
        is_right = place.fill(engine)
        call(engine)
        assert sum(each.entries for each in stats().caches) == 0
        assert is_right()
        assert stats().errors == 0


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_rows_without_a_call_are_those_of_the_old_weights(place: Place) -> None:
    """Each place has rows that a step would read."""
    with plugged(**place.options), torch.no_grad():
        engine = Engine()
        is_right = place.fill(engine)
        engine.load()
        assert not is_right()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_disk_has_no_row_for_a_server_that_starts_after_the_call(call: Callable[[Engine], Any]) -> None:
    """Neither a row of the old weights nor one of the new ones is found under the old name."""
    with plugged(**DISK), torch.no_grad():
        engine = Engine()
        fill_disk(engine)
        call(engine)
        for _ in range(3):
            assert is_right_behind_the_fetch(engine)
        write_disk()
        service.SERVICE.close()
    for weight in (1, -2):  # the server that starts again has the old weights, or the new ones
        with plugged(**DISK), torch.no_grad():
            engine = Engine()
            engine.tower.weight *= weight
            service.SERVICE.make_early(
                engine.tower, StepShape(HIDDEN, 0, torch.bfloat16, torch.device("cpu"))
            )
            assert is_right_behind_the_fetch(engine)
            assert (engine.tower.num_encodes, cache().tiers[0].hits) == (3, 0)
            service.SERVICE.close()


def test_disk_has_the_rows_for_a_server_that_starts_without_a_call() -> None:
    with plugged(**DISK), torch.no_grad():
        engine = Engine()
        is_right = fill_disk(engine)
        assert is_right()
        assert (engine.tower.num_encodes, cache().tiers[0].hits) == (3, 3)
        service.SERVICE.close()
