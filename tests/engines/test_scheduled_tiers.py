"""vLLM's own scheduler over a disk or a store: later engines encode nothing that it has; waits are bounded.

Every step checks the rows that it needs, as in test_scheduled.py.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_runner.cases import Case
from engine_runner.pool import Pool
from engine_runner.scheduled import Scheduled

from vitcache.adapters.vllm import tier_settings
from vitcache.adapters.vllm.orders import ItemKey
from vitcache.adapters.vllm.tier_fetches import Item, TierFetches
from vitcache.adapters.vllm.tier_settings import FETCH_TIMEOUT_S
from vitcache.bench.harness.store_cluster import free_port, store_cluster
from vitcache.tiers.disk_tier import DiskTier

Make = Callable[..., Scheduled]
NUM_ROWS = 48
WAIT_S = 60.0

runners = pytest.mark.parametrize("model_runner", [1, 2], ids=["V1", "V2"])


@pytest.fixture
def make(pool: Pool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    """Makes a scheduler and its worker over the disk of the test, or a store; the one before is closed."""
    made: list[Scheduled] = []
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("PYTHONHASHSEED", "0")

    def start(
        model_runner: int = 1,
        weights_name: str | None = "weights",
        answers: bool = True,
        master: str | None = None,
        **options: Any,
    ) -> Scheduled:
        for scheduled in made:
            scheduled.close()
        made.clear()
        names = ("device_pages", "host_pages", "num_batched_tokens")
        sizes = {name: options.pop(name) for name in names if name in options}
        tier: dict[str, Any] = {"disk": str(tmp_path / "disk"), "disk_bytes": "64MiB"}
        if master is not None:
            tier = {"mooncake": master, "mooncake_worth": None}
        tier["weights_name"] = weights_name
        case = Case("scheduled", mode="vitcache", model_runner=model_runner, connector=tier, **sizes)
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(model_runner - 1))
        # A disk that answers is never late, also on a busy machine.
        monkeypatch.setattr(tier_settings, "FETCH_TIMEOUT_S", WAIT_S if answers else FETCH_TIMEOUT_S)
        made.append(Scheduled(pool.model("qwen3"), case, **options))
        if answers:
            answer_at_once(made[-1])
        return made[-1]

    yield start
    for scheduled in made:
        scheduled.close()


def fetches_of(scheduled: Scheduled) -> TierFetches:
    fetches: TierFetches | None = scheduled.scheduler.ec_connector._inventory.fetches
    assert fetches is not None
    return fetches


def answer_at_once(scheduled: Scheduled) -> None:
    """Let each fetch end before its request is asked for again, however slow this machine is."""
    fetcher: Any = fetches_of(scheduled)._fetcher
    begin = fetcher.begin

    def begin_and_wait(item: Any) -> Any:
        fetch = begin(item)
        fetch._fetch.wait(WAIT_S)
        return fetch

    fetcher.begin = begin_and_wait


def flush(scheduled: Scheduled) -> None:
    assert scheduled.connector._store.cache.flush(WAIT_S)


def ask(scheduled: Scheduled, *identifiers: str, salt: str | None = None) -> int:
    """Run one request; return the number of its encodes."""
    encodes = scheduled.encodes
    name = f"request {len(scheduled.finished)}"
    scheduled.add(name, [(identifier, NUM_ROWS) for identifier in identifiers], salt=salt)
    scheduled.run()
    assert name in scheduled.finished
    return scheduled.encodes - encodes


@runners
@pytest.mark.parametrize("lag", [0, 1], ids=["in step", "one step behind"])
def test_later_engine_encodes_none_of_the_items_that_were_needed_three_times(
    make: Make, model_runner: int, lag: int
) -> None:
    names = [f"item {number}" for number in range(6)]
    first = make(model_runner, lag=lag, device_pages=24)
    for _ in range(3):
        for name in names:
            ask(first, name)
    assert ask(first, "once") == 1
    flush(first)
    second = make(model_runner, lag=lag, device_pages=24)
    assert [ask(second, name) for name in names] == [0] * 6
    assert ask(second, "once") == 1
    assert ask(second, *names[:3], "new") == 1
    assert second.connector._store.tier_stats()[0].hits == 6


def test_names_of_weights_and_tenants_share_nothing(make: Make) -> None:
    first = make(device_pages=12)
    for _ in range(3):
        ask(first, "a", salt="tenant")
    flush(first)
    for name in ("second", None):
        other = make(weights_name=name, device_pages=12)
        assert ask(other, "a", salt="tenant") == 1
    again = make(device_pages=12)
    assert ask(again, "a", salt="tenant") == 0
    assert ask(again, "b") == 1
    again.scheduler.reset_encoder_cache()
    assert ask(again, "a") == 1


def test_reset_of_the_encoder_cache_drops_the_name_for_later_engines_too(make: Make) -> None:
    first = make(device_pages=12)
    for _ in range(3):
        ask(first, "a")
    flush(first)
    first.reset()  # the rows of every item change
    assert ask(first, "a") == 1
    second = make(device_pages=12)
    assert ask(second, "a") == 1


@runners
def test_hanging_disk_delays_a_request_by_the_deadline_and_later_ones_not_at_all(
    make: Make, model_runner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(model_runner, device_pages=12)
    for name in ("a", "b", "c"):
        for _ in range(3):
            ask(first, name)
    flush(first)
    released, fetch = threading.Event(), DiskTier.fetch

    def hang(*arguments: Any) -> Any:
        released.wait(WAIT_S)
        return fetch(*arguments)

    second = make(model_runner, answers=False, device_pages=12)
    monkeypatch.setattr(DiskTier, "fetch", hang)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.01
        return now

    fetches_of(second)._clock = clock
    try:
        assert ask(second, "a") == 1
        assert now < 0.2
        assert ask(second, "a") == 0
        store = second.connector._store
        assert store.begin_fetch(Item(ItemKey("", "c"), NUM_ROWS, 512, 3)).wait() == [
            False
        ]  # until it is late
        assert (store.tier_stats()[0].openings, store.tier_stats()[0].is_open) == (1, True)
        before = now
        assert ask(second, "b") == 1
        assert now - before < 0.05
    finally:
        released.set()


def test_another_engine_encodes_none_of_the_items_that_a_store_has(make: Make) -> None:
    names = ["a", "b", "c"]
    with store_cluster(num_nodes=1, node_bytes=64 << 20) as cluster:
        first = make(master=cluster.address, device_pages=24)
        for _ in range(3):
            for name in names:
                ask(first, name)
        flush(first)
        second = make(master=cluster.address, device_pages=24)
        assert [ask(second, name) for name in names] == [0, 0, 0]
        assert ask(second, "new") == 1
        third = make(master=cluster.address, weights_name="second", device_pages=24)
        assert ask(third, "a") == 1
        third.close()


def test_engine_without_a_master_encodes_every_item_once(make: Make) -> None:
    scheduled = make(master=f"127.0.0.1:{free_port()}", answers=False, device_pages=24)
    assert [ask(scheduled, name) for name in ("a", "b", "a", "b", "a")] == [1, 1, 0, 0, 0]
    [stats] = scheduled.connector._store.tier_stats()
    assert (stats.name, stats.is_open, stats.hits, stats.stored) == ("mooncake", True, 0, 0)
    assert stats.openings == 1


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("seed", range(2))
def test_random_requests_over_a_disk_get_the_right_rows_and_finish(make: Make, lag: int, seed: int) -> None:
    for run in range(2):
        scheduled = make(2, lag=lag, device_pages=12, host_pages=20, num_blocks=40)
        chance = random.Random(seed)
        sizes = {f"item {number}": chance.choice([1, 6, 16, 33, 48]) for number in range(24)}
        for number in range(100):
            items = [(name, sizes[name]) for name in chance.choices(list(sizes), k=chance.randint(0, 4))]
            salt = chance.choice([None, None, "tenant"])
            scheduled.add(f"request {number}", items, chance.randint(1, 6), salt)
            for _ in range(chance.randint(0, 4)):
                scheduled.step()
            if chance.random() < 0.1 and scheduled.scheduler.requests:
                scheduled.abort(chance.choice(list(scheduled.scheduler.requests)))
        scheduled.run()
        assert not scheduled.scheduler.requests
        assert not run or scheduled.connector._store.tier_stats()[0].hits > 5
