"""The placement of a step in vLLM's worker: random traffic, compared with a loop over tokens."""

from __future__ import annotations

import random
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm_scene.encoder_cache import EncoderCacheModel
from vllm_scene.engine import Engine, Window, run_traffic
from vllm_scene.placed_worker import PlacedWorker, make_batch
from vllm_scene.requests import make_request, make_settings
from vllm_scene.store_worker import make_rows

from vitcache import tracing
from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.orders import ItemKey, LoadOrder, SaveOrder, StepOrders
from vitcache.placement import dispatch


@pytest.mark.parametrize("lag", range(3))
@pytest.mark.parametrize(("device_pages", "host_pages"), [(8, 0), (8, 6), (12, 40)])
@pytest.mark.parametrize(("levels", "by_model"), [(0, False), (1, False), (3, True)])
def test_random_traffic_places_the_rows_of_a_loop_over_tokens(
    lag: int, device_pages: int, host_pages: int, levels: int, by_model: bool
) -> None:
    inventory = Inventory(make_settings(device_pages, host_pages))
    worker = PlacedWorker(inventory.settings, levels=levels, by_model=by_model, rng=random.Random(lag))
    engine = Engine(inventory, EncoderCacheModel(inventory), [worker], random.Random(lag), lag, True)
    run_traffic(engine, 300, salts=(None, None, "a"))
    worker.store.cache.check_integrity()
    assert all(worker.owns(identifier) for identifier in worker.rows)
    assert not engine.failed
    assert worker.num_placed == worker.counts["placed_rows"] > 1000
    assert worker.counts[f"placements_{'model' if by_model else 'table'}"] > 100
    assert worker.counts["compactions"] > 0
    loads = [worker.counts.get(f"loads_{overlap}", 0) for overlap in ("hidden", "exposed", "placed")]
    assert sum(loads) == worker.num_loads
    if host_pages > 10:
        assert loads[2] > 3
        assert loads[0] + loads[1] > 3


@pytest.mark.parametrize(("by_model", "launch"), [(False, "embed"), (True, "scatter")])
def test_steps_with_hits_fresh_rows_and_loads_are_one_launch_each(
    by_model: bool, launch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = []
    for name in ("embed", "scatter"):
        function = getattr(dispatch, name)

        def note(*args: Any, name: str = name, function: Any = function, **kwargs: Any) -> None:
            launches.append(name)
            function(*args, **kwargs)

        monkeypatch.setattr(dispatch, name, note)
    inventory = Inventory(make_settings(12, 40))
    worker = PlacedWorker(inventory.settings, levels=3, by_model=by_model)
    engine = Engine(inventory, EncoderCacheModel(inventory), [worker], random.Random(0), 1, True)
    run_traffic(engine, 200)
    steps = worker.counts[f"placements_{'model' if by_model else 'table'}"]
    assert set(launches) == {launch}
    assert len(launches) == steps > 100
    assert worker.counts["loads_placed"] > 3


def test_random_traffic_with_refused_saves_places_the_right_rows() -> None:
    inventory = Inventory(make_settings(8, 30))
    worker = PlacedWorker(inventory.settings)
    worker.refuses = lambda key: zlib.crc32(f"{key} {worker.orders.step}".encode()) % 8 == 0
    engine = Engine(inventory, EncoderCacheModel(inventory), [worker], random.Random(1), 2, True)
    run_traffic(engine, 400)
    worker.store.cache.check_integrity()
    assert inventory.counts.take()["refusals"] > 5


def make_worker(*names: str) -> PlacedWorker:
    """Return a worker whose encoder cache has items of four rows."""
    worker = PlacedWorker(make_settings(8, 8))
    saves = {name: SaveOrder(ItemKey("", name), 4, 1, False) for name in names}
    worker.begin(StepOrders(1, saves=saves))
    for name in names:
        worker.encode(name, ("", name, 4, 0), is_v2=True)
    worker.save_all(worker.fresh)
    worker.end()
    worker.begin(StepOrders(2))
    return worker


def place(worker: PlacedWorker, *items: tuple[str, int]) -> int:
    request = make_request("r", list(items))
    before = worker.num_placed
    worker.place([Window(request, 0, request.num_tokens, 0)])
    return worker.num_placed - before


def test_item_that_the_encoder_cache_lacks_is_named_and_nothing_is_written() -> None:
    worker = make_worker("a")
    with pytest.raises(RuntimeError, match="lacks 'b'"):
        place(worker, ("a", 4), ("b", 4))
    worker.placement.forget("r")
    assert place(worker, ("a", 4)) == 4


def test_item_with_fewer_rows_than_tokens_is_refused_with_both_numbers() -> None:
    worker = make_worker("a")
    with pytest.raises(ValueError, match=r"4.*5|5.*4"):
        place(worker, ("a", 5))


def test_rows_outside_of_pages_are_placed_from_the_encoder_cache() -> None:
    worker = make_worker()
    worker.rows["a"] = make_rows("a", 4, 0, worker.settings.row_width)
    assert place(worker, ("a", 4)) == 4


def test_item_that_two_requests_need_is_placed_for_both() -> None:
    worker = make_worker("a")
    requests = [make_request(name, [("a", 4)]) for name in ("first", "second")]
    worker.place([Window(request, 0, request.num_tokens, 0) for request in requests])
    assert worker.num_placed == 8


def test_pending_rows_of_two_items_with_one_identifier_are_stored_once() -> None:
    worker = make_worker()
    worker.begin(StepOrders(3, saves={"a": SaveOrder(ItemKey("", "a"), 4, 1, False)}))
    worker.encode("a", ("", "a", 4, 0), is_v2=True)
    worker.store.reserve(["a"])
    requests = [make_request(name, [("a", rows)]) for name, rows in (("whole", 4), ("part", 3))]
    worker.features.update({request.request_id: request.mm_features for request in requests})
    lengths = [request.num_tokens for request in requests]
    batch = make_batch(
        *((request.request_id, 0, request.num_tokens, request.num_tokens) for request in requests)
    )
    ids, out = torch.zeros(batch.num_tokens, dtype=torch.int32), torch.full((batch.num_tokens, 8), torch.nan)
    assert worker.placement.place(batch, ids, out, None, worker.store) == 7
    rows = make_rows("a", 4, 0, worker.settings.row_width)
    assert torch.equal(out[1:5], rows)
    assert torch.equal(out[lengths[0] + 1 : lengths[0] + 4], rows[:3])
    assert torch.equal(worker.rows["a"], rows)
    assert worker.owns("a")


def test_request_whose_items_have_changed_is_planned_again_after_forget() -> None:
    worker = make_worker("a", "b")
    assert place(worker, ("a", 4)) == 4
    worker.placement.forget("r")
    assert place(worker, ("b", 4), ("a", 4)) == 8


def test_masked_tokens_of_an_item_are_text() -> None:
    worker = make_worker("a")
    mask = torch.tensor([True, False, True, True, False, True])
    position = SimpleNamespace(offset=1, length=6, is_embed=mask)
    worker.features["r"] = [SimpleNamespace(identifier="a", mm_position=position)]
    batch = make_batch(("r", 0, 8, 8))
    ids = torch.arange(8, dtype=torch.int32)
    out = torch.full((8, worker.hidden), torch.nan)
    assert worker.placement.place(batch, ids, out, None, worker.store) == 4
    expected = worker.table[:8].clone()
    expected[[1, 3, 4, 6]] = make_rows("a", 4, 0, worker.settings.row_width)
    assert torch.equal(out, expected)


def test_draft_tokens_behind_a_prompt_are_text_and_may_be_dropped() -> None:
    worker = make_worker("a")
    worker.features["r"] = make_request("r", [("a", 4)]).mm_features
    batch = make_batch(("r", 3, 10, 5), num_dropped=3)  # of five draft tokens
    ids = torch.arange(4, dtype=torch.int32)
    out = torch.full((4, worker.hidden), torch.nan)
    assert worker.placement.place(batch, ids, out, None, worker.store) == 2
    rows = make_rows("a", 4, 0, worker.settings.row_width)
    assert torch.equal(out, torch.cat([rows[2:], worker.table[2:4]]))


def test_decode_writes_text_rows_and_leaves_deepstack_levels_alone() -> None:
    worker = make_worker("a")
    request = make_request("r", [("a", 4)])
    levels = [torch.full((1, worker.hidden), 7.0)]
    batch = make_batch(("r", request.num_tokens, request.num_tokens + 1, request.num_tokens))
    worker.features["r"] = request.mm_features
    out = torch.full((1, worker.hidden), torch.nan)
    assert worker.placement.place(batch, torch.tensor([3]), out, levels, worker.store) == 0
    assert torch.equal(out[0], worker.table[3])
    assert (levels[0] == 7).all()


def test_step_opens_the_ranges_of_every_adapter() -> None:
    worker = make_worker("a")
    tracing.enable()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            assert place(worker, ("a", 4)) == 4
            orders = StepOrders(3, demotions={ItemKey("", "a"): None})
            worker.end()
            worker.begin(orders)
            worker.end()
            worker.begin(StepOrders(4, loads={"a": LoadOrder(ItemKey("", "a"), 4)}))
    finally:
        tracing.disable()
    found = {event.key for event in profile.key_averages() if event.key.startswith("vitcache.")}
    assert found == {"vitcache.key", "vitcache.copy", "vitcache.place"}
