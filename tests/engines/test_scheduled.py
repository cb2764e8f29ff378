"""vLLM's own scheduler with vitcache's connector and manager; every step checks the rows that it needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_runner.cases import Case
from engine_runner.pool import Pool
from engine_runner.scheduled import Scheduled

Make = Callable[..., Scheduled]
NUM_ROWS = 48


@pytest.fixture
def make(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes a scheduler and its worker; the last one is closed after the test."""
    made: list[Scheduled] = []

    def start(model_runner: int = 1, mode: str = "vitcache", **options: Any) -> Scheduled:
        names = ("device_pages", "host_pages", "num_batched_tokens", "settings")
        sizes = {name: options.pop(name) for name in names if name in options}
        case = Case("scheduled", mode=mode, model_runner=model_runner, **sizes)
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(model_runner - 1))
        made.append(Scheduled(pool.model("qwen3"), case, **options))
        return made[-1]

    yield start
    for scheduled in made:
        scheduled.close()


def ask(scheduled: Scheduled, *identifiers: str, salt: str | None = None) -> int:
    """Run one request; return the number of its encodes."""
    encodes = scheduled.encodes
    name = f"request {len(scheduled.finished)}"
    scheduled.add(name, [(identifier, NUM_ROWS) for identifier in identifiers], salt=salt)
    scheduled.run()
    assert name in scheduled.finished
    return scheduled.encodes - encodes


runners = pytest.mark.parametrize("model_runner", [1, 2], ids=["V1", "V2"])
lags = pytest.mark.parametrize("lag", [0, 1], ids=["in step", "one step behind"])


@runners
@lags
def test_items_are_encoded_once_and_return_from_both_tiers(make: Make, model_runner: int, lag: int) -> None:
    scheduled = make(model_runner, lag=lag, device_pages=12)  # four items
    assert ask(scheduled, "first") == 1
    assert ask(scheduled, "first") == 0
    names = [f"item {number} ".ljust(160, "x") for number in range(20)]
    assert [ask(scheduled, name) for name in names] == [1] * 20
    assert "first" not in scheduled.rows
    assert ask(scheduled, "first") == 0
    assert [ask(scheduled, name) for name in names] == [0] * 20


def test_orders_tell_whether_the_encoder_runs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled = make(device_pages=12)
    told: list[tuple[bool, bool]] = []  # whether the encoder runs, and whether rows are loaded
    execute = scheduled._execute

    def note(planned: Any) -> Any:
        if orders := planned.ec_connector_metadata.orders:  # None: no token is scheduled
            told.append((orders.runs_encoder, bool(orders.loads)))
        return execute(planned)

    monkeypatch.setattr(scheduled, "_execute", note)
    for number in range(6):
        ask(scheduled, f"item {number}")
    assert (True, False) in told
    told.clear()
    assert ask(scheduled, "item 0") == 0
    assert told[0] == (False, True)
    told.clear()
    assert ask(scheduled, "item 1", "new") == 1
    assert (True, True) in told


@runners
def test_reset_encoder_cache_reaches_both_tiers(make: Make, model_runner: int) -> None:
    scheduled = make(model_runner, device_pages=12)
    names = [f"item {number}" for number in range(8)]
    assert sum(ask(scheduled, name) for name in names) == 8
    scheduled.reset()  # the rows of every item change
    assert sum(ask(scheduled, name) for name in names) == 8
    assert sum(ask(scheduled, name) for name in names) == 0


def test_stock_scheduler_encodes_again_after_eviction(make: Make) -> None:
    scheduled = make(mode="stock")
    names = [f"item {number}" for number in range(20)]
    assert sum(ask(scheduled, name) for name in names) == 20
    assert sum(ask(scheduled, name) for name in names) == 20


@runners
@lags
@pytest.mark.parametrize("host_pages", [0, 20, 200])
@pytest.mark.parametrize("seed", range(3))
def test_random_requests_get_the_right_rows_and_finish(
    make: Make, model_runner: int, lag: int, host_pages: int, seed: int
) -> None:
    scheduled = make(model_runner, lag=lag, device_pages=12, host_pages=host_pages, num_blocks=40)
    chance = random.Random(seed)
    sizes = {f"item {number}": chance.choice([1, 6, 16, 33, 48]) for number in range(24)}
    for number in range(150):
        items = [(name, sizes[name]) for name in chance.choices(list(sizes), k=chance.randint(0, 4))]
        scheduled.add(f"request {number}", items, chance.randint(1, 6), chance.choice([None, None, "tenant"]))
        for _ in range(chance.randint(0, 4)):
            scheduled.step()
        if chance.random() < 0.1 and scheduled.scheduler.requests:
            scheduled.abort(chance.choice(list(scheduled.scheduler.requests)))
        if chance.random() < 0.05:
            scheduled.run()
            scheduled.reset()
    scheduled.run()
    assert not scheduled.scheduler.requests


@runners
def test_uuid_of_two_images_of_one_request_ends_the_request_alone(make: Make, model_runner: int) -> None:
    scheduled = make(model_runner, device_pages=12, num_batched_tokens=64)
    scheduled.add("small", [("uuid", 4)])
    scheduled.run()
    assert sum(ask(scheduled, f"item {number}") for number in range(8)) == 8  # evict it
    scheduled.add("both", [("uuid", 64), ("uuid", 4)])  # the second one is in another chunk
    scheduled.run()
    assert "both" in scheduled.finished
    assert ask(scheduled, "item 0") == 0


@runners
def test_item_above_the_device_tier_ends_its_request_alone(make: Make, model_runner: int) -> None:
    scheduled = make(model_runner, device_pages=12)  # 192 rows; vLLM's own cache has 512
    scheduled.add("large", [("large", 200)])
    assert ask(scheduled, "small") == 1
    scheduled.run()
    assert "large" in scheduled.finished
    assert scheduled.encodes == 1


@runners
@lags
@pytest.mark.parametrize("shared", [False, True])
def test_request_that_its_own_pass_preempts_takes_no_rows_from_others(
    make: Make, model_runner: int, lag: int, shared: bool
) -> None:
    settings = {"scheduling_policy": "priority", "long_prefill_token_threshold": 16}
    sizes = {"device_pages": 64, "num_batched_tokens": 64, "num_blocks": 21}
    scheduled = make(model_runner, lag=lag, settings=settings, **sizes)
    scheduled.add("first", [(f"low {number}", 6) for number in range(30)], priority=2)
    scheduled.step()
    # Each step encodes two items of each request. The second request needs those of the first, or its own.
    names = [f"low {number + 8}" if shared else f"own {number}" for number in range(18)]
    scheduled.add("second", [(name, 6) for name in names], priority=1)
    scheduled.step()
    scheduled.add("urgent", [(f"high {number}", 6) for number in range(18)], priority=0)
    for _ in range(40):
        scheduled.step()
    assert scheduled.preempted[:1] == ["first"]
    scheduled.run()
    assert set(scheduled.finished) == {"first", "second", "urgent"}
