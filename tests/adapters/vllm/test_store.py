"""The worker's store: orders are executed in pages, and vLLM's encoder cache shows views of them."""

from __future__ import annotations

import logging

import pytest
import torch
from vllm_scene.encoder_cache import EncoderCacheModel
from vllm_scene.engine import Engine, run_traffic
from vllm_scene.requests import make_settings
from vllm_scene.store_worker import StoreWorker, make_rows

from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.orders import ItemKey, LoadOrder, SaveOrder, StepOrders, StepReport

WIDTH = 8


class Scene:
    """A store and its encoder cache, with orders written by hand."""

    def __init__(self, device_pages: int = 8, host_pages: int = 8) -> None:
        self.worker = StoreWorker(make_settings(device_pages, host_pages))
        self.rows = self.worker.rows
        self.cache = self.worker.store.cache
        self.step = 0

    def orders(self, **fields: object) -> StepOrders:
        self.step += 1
        return StepOrders(self.step, **fields)  # type: ignore[arg-type]

    def save(self, *names: str, num_rows: int = 4, to_host: bool = False) -> StepReport:
        pages = -(-num_rows // 4)
        saves = {name: SaveOrder(key(name), num_rows, pages, to_host) for name in names}
        self.worker.begin(self.orders(saves=saves))
        for name in names:
            self.worker.encode(name, ("", name, num_rows, 0), is_v2=False)
        return self.end()

    def run(self, **fields: object) -> StepReport:
        self.worker.begin(self.orders(**fields))
        return self.end()

    def evict(self, name: str) -> None:
        self.rows.pop(name)
        self.run(releases=[name], demotions={key(name): None})

    @property
    def identifiers(self) -> list[str]:
        return list(self.rows)

    def end(self) -> StepReport:
        return self.worker.store.end() or StepReport(self.step, 0)

    def expect_rows(self, name: str, num_rows: int = 4) -> None:
        assert torch.equal(self.rows[name], make_rows(name, num_rows, 0, WIDTH))
        assert self.worker.owns(name)


def key(name: str) -> ItemKey:
    return ItemKey("", name)


def load(name: str, num_rows: int = 4) -> dict[str, LoadOrder]:
    return {name: LoadOrder(key(name), num_rows)}


def test_saved_rows_are_a_view_of_pages_and_the_batch_may_be_overwritten() -> None:
    scene = Scene()
    report = scene.save("a", "b")
    assert report.saved == {key("a"), key("b")}
    assert report.counts["stores"] == 2
    assert report.counts["store_bytes"] == 2 * 4 * WIDTH * 4
    scene.expect_rows("a")
    scene.expect_rows("b")
    scene.cache.check_integrity()


def test_evicted_entry_is_demoted_and_loaded_again_bit_for_bit() -> None:
    scene = Scene()
    scene.save("a", num_rows=7)
    scene.evict("a")
    assert scene.cache.stats().device_bytes == 0
    report = scene.run(loads=load("a", 7))
    scene.expect_rows("a", 7)
    assert not report.lost
    assert report.counts.get("loads_hidden", 0) + report.counts.get("loads_exposed", 0) == 1
    assert report.counts["load_bytes"] == 7 * WIDTH * 4


def test_saved_rows_are_written_through_where_ordered() -> None:
    scene = Scene()
    scene.save("a", to_host=True)
    scene.save("b")
    assert scene.cache.stats().host_bytes == 4 * WIDTH * 4


def test_host_drop_keeps_the_device_entry_and_frees_host_pages() -> None:
    scene = Scene()
    scene.save("a", to_host=True)
    scene.run(host_drops={key("a"): None})
    assert scene.cache.stats().host_bytes == 0
    scene.expect_rows("a")


def test_fragmented_pages_are_compacted_and_the_shown_views_move_along() -> None:
    scene = Scene(device_pages=4, host_pages=0)
    scene.save("a", "b", "c", "d")
    scene.rows.pop("a"), scene.rows.pop("c")
    scene.run(releases=["a", "c"], drops={key("a"): None, key("c"): None})
    before = scene.rows["d"].data_ptr()
    report = scene.save("e", num_rows=8)
    assert report.saved == {key("e")}
    assert report.counts["compactions"] == 1
    assert scene.rows["d"].data_ptr() != before
    for name, num_rows in (("b", 4), ("d", 4), ("e", 8)):
        scene.expect_rows(name, num_rows)
    scene.cache.check_integrity()


def test_dropped_rows_that_are_still_shown_survive_a_compaction() -> None:
    scene = Scene(device_pages=4, host_pages=0)
    scene.save("a", "b", "c", "d")
    scene.rows.pop("a"), scene.rows.pop("c")
    scene.run(releases=["a", "c"], drops={key("a"): None, key("c"): None, key("d"): None})
    scene.save("e", num_rows=8)
    assert torch.equal(scene.rows["d"], make_rows("d", 4, 0, WIDTH))
    scene.expect_rows("e", 8)


def test_fragmented_pages_are_compacted_for_a_load() -> None:
    scene = Scene(device_pages=4)
    scene.save("wide", num_rows=8)
    scene.evict("wide")
    scene.save("a", "b", "c", "d")
    scene.evict("a")
    scene.evict("c")
    scene.run(loads=load("wide", 8))
    scene.expect_rows("wide", 8)
    scene.expect_rows("d")


def test_new_epoch_drops_all_rows_and_their_views() -> None:
    scene = Scene()
    scene.save("a", to_host=True)
    scene.worker.begin(StepOrders(5, 1))
    scene.worker.store.end()
    assert scene.identifiers == []
    assert len(scene.cache) == 0
    assert scene.cache.stats().leased_pages == 0


def test_load_of_missing_rows_gives_zeros_and_is_reported() -> None:
    scene = Scene()
    report = scene.run(loads=load("a", 5))
    assert report.lost == {"a"}
    assert torch.equal(scene.rows["a"], torch.zeros(5, WIDTH))
    scene.save("a", num_rows=5)
    scene.expect_rows("a", 5)


@pytest.mark.parametrize("runs_encoder", [False, True])
def test_v1_defers_the_wait_for_loads_only_if_the_encoder_runs(
    runs_encoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene()
    store = scene.worker.store
    store._waits_after_encoder = True
    scene.save("a")
    scene.evict("a")
    used: list[str] = []
    monkeypatch.setattr(store.on_device, "use", used.extend)
    saves = {"b": SaveOrder(key("b"), 4, 1, False)}
    scene.worker.begin(scene.orders(loads=load("a"), saves=saves, runs_encoder=runs_encoder))
    assert used == ([] if runs_encoder else ["a"])
    scene.rows["c"] = torch.ones(4, WIDTH)  # not ordered
    store.save("c")
    assert used == ["a"]


def test_load_with_another_number_of_rows_gives_zeros_and_is_reported() -> None:
    scene = Scene()
    scene.save("a")
    scene.evict("a")
    assert scene.run(loads=load("a", 5)).lost == {"a"}
    assert scene.rows["a"].shape == (5, WIDTH)


def test_demotion_of_missing_rows_is_reported() -> None:
    assert Scene().run(demotions={key("a"): None}).missing == {key("a")}


def test_encoder_cache_that_was_cleared_alone_is_noticed_and_gives_zeros() -> None:
    scene = Scene()
    scene.save("a", "b", to_host=True)
    scene.rows.clear()  # as `reload_weights` does
    report = scene.run()
    assert report.is_cleared
    assert torch.equal(scene.rows["a"], torch.zeros(4, WIDTH))
    assert len(scene.cache) == 0
    assert not scene.run().is_cleared
    scene.worker.begin(StepOrders(9, 1))
    assert scene.identifiers == []


def test_cleared_encoder_cache_gets_zeros_of_the_same_shape_but_not_if_freed() -> None:
    scene = Scene()
    scene.save("freed", "used")
    scene.worker.begin(scene.orders(saves={"narrow": SaveOrder(key("narrow"), 8, 1, False)}))
    scene.rows["narrow"] = torch.ones(8, WIDTH // 2)
    scene.worker.store.save("narrow")
    scene.end()
    scene.rows.clear()
    assert scene.run(releases=["freed"]).is_cleared
    assert sorted(scene.identifiers) == ["narrow", "used"]
    assert scene.rows["used"].shape == (4, WIDTH)
    assert scene.rows["narrow"].shape == (8, WIDTH // 2)


def test_encoder_cache_that_was_cleared_before_all_its_rows_are_freed_is_noticed() -> None:
    scene = Scene()
    scene.save("a", "b", to_host=True)
    scene.evict("b")
    scene.rows.clear()  # new weights, and then one request that needs all pages
    report = scene.run(releases=["a"], demotions={key("a"): None}, loads=load("b"))
    assert report.is_cleared
    assert report.lost == {"b"}
    assert len(scene.cache) == 0
    assert not scene.run().is_cleared


def test_new_epoch_of_a_cleared_encoder_cache_is_not_reported_as_cleared() -> None:
    scene = Scene()
    scene.save("a")
    scene.rows.clear()  # as `reset_encoder_cache` does
    for step in (5, 6):
        scene.worker.begin(StepOrders(step, 1))
        assert not scene.end().is_cleared


def test_encoder_cache_whose_rows_are_all_freed_was_not_cleared() -> None:
    scene = Scene(device_pages=40)
    names = [f"item {number}" for number in range(30)]
    scene.save(*names)
    for name in names:
        scene.rows.pop(name)
    assert not scene.run(releases=names, demotions={key(name): None for name in names[:2]}).is_cleared
    scene.rows.clear()
    assert scene.run().is_cleared


def test_encoder_cache_that_lacks_freed_rows_was_not_cleared() -> None:
    scene = Scene()
    scene.save("a", "b")
    scene.rows.pop("a")
    assert not scene.run(releases=["a"], demotions={key("a"): None}).is_cleared


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, WIDTH), "(3, 8), expected 4 rows"),
        ((4, 3), "(4, 3)"),
        ((4, 16), "(4, 16)"),
        ((4, WIDTH, 1), "(4, 8, 1)"),
    ],
)
def test_rows_of_an_unexpected_shape_are_not_kept_and_serve_this_request(
    shape: tuple[int, ...], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    scene.worker.begin(scene.orders(saves={"a": SaveOrder(key("a"), 4, 1, False)}))
    batch = torch.ones(100, *shape)
    scene.rows["a"] = batch[3]
    with caplog.at_level(logging.ERROR):
        scene.worker.store.save("a")
    report = scene.worker.store.end()
    assert report is not None
    assert report.saved == set()
    assert message in caplog.text
    assert torch.equal(scene.rows["a"], torch.ones(shape))
    assert scene.rows["a"].untyped_storage().nbytes() == torch.ones(shape).nbytes
    assert len(scene.cache) == 0


def test_rows_of_an_unexpected_dtype_are_not_kept_and_serve_this_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene()
    scene.worker.begin(scene.orders(saves={"a": SaveOrder(key("a"), 4, 1, False)}))
    scene.rows["a"] = torch.ones(4, WIDTH, dtype=torch.float64)
    scene.worker.store.save("a")
    assert scene.end().saved == set()
    assert "float64" in caplog.text
    assert scene.rows["a"].dtype == torch.float64


def test_rows_that_need_more_pages_than_counted_are_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.worker.begin(scene.orders(saves={"a": SaveOrder(key("a"), 8, 1, False)}))
    scene.worker.encode("a", ("", "a", 8, 0), is_v2=False)
    assert scene.end().saved == set()
    assert "needs 2 pages, the scheduler counted 1" in caplog.text
    assert len(scene.cache) == 0


def test_narrow_rows_are_packed_and_loaded_again() -> None:
    scene = Scene()
    narrow = torch.randn(8, WIDTH // 2)
    scene.worker.begin(scene.orders(saves={"a": SaveOrder(key("a"), 8, 1, False)}))
    scene.rows["a"] = narrow.clone()
    scene.worker.store.save("a")
    assert scene.end().saved == {key("a")}
    scene.evict("a")
    scene.run(loads=load("a", 8))
    assert torch.equal(scene.rows["a"], narrow)


@pytest.mark.parametrize("inference", [(True, False), (False, True)])
def test_rows_that_were_made_in_inference_mode_are_moved_outside_of_it_and_reverse(
    inference: tuple[bool, bool],
) -> None:
    first, second = inference
    with torch.inference_mode(first):
        scene = Scene(device_pages=4)
        scene.save("a", "b", "c", "d", to_host=True)
        scene.run(loads=load("lost"), releases=["b"], demotions={key("b"): None})
    with torch.inference_mode(second):
        scene.rows.pop("b"), scene.rows.pop("d")
        scene.run(releases=["d"], demotions={key("d"): None})
        assert scene.save("e", num_rows=8).counts["compactions"] == 1
        for name, num_rows in (("a", 4), ("c", 4), ("e", 8)):
            scene.expect_rows(name, num_rows)
        scene.rows.pop("e")
        scene.run(releases=["e"], demotions={key("e"): None}, loads=load("b"))
        scene.expect_rows("b")


def test_rows_without_an_order_are_left_alone() -> None:
    scene = Scene()
    scene.worker.begin(scene.orders())
    scene.rows["a"] = rows = torch.ones(4, WIDTH)
    scene.worker.store.save("a")
    assert scene.rows["a"] is rows
    assert scene.worker.store.end() is None


def test_close_releases_all_and_keeps_the_views_readable() -> None:
    scene = Scene()
    scene.save("a")
    scene.worker.store.close()
    assert torch.equal(scene.rows["a"], make_rows("a", 4, 0, WIDTH))


def test_identifiers_with_surrogates_and_of_any_length_have_entries() -> None:
    scene = Scene()
    for name in ("\ud800", "x" * 5000, ""):
        assert scene.save(name).saved == {key(name)}
        scene.expect_rows(name)


@pytest.mark.parametrize("lag", range(4))
@pytest.mark.parametrize(("device_pages", "host_pages"), [(8, 0), (8, 6), (12, 40)])
def test_random_traffic_reads_the_right_rows_from_views_of_pages(
    lag: int, device_pages: int, host_pages: int
) -> None:
    import random

    inventory = Inventory(make_settings(device_pages, host_pages))
    workers = [StoreWorker(inventory.settings, waits_after_encoder=bool(lag % 2)) for _ in range(2)]
    engine = Engine(inventory, EncoderCacheModel(inventory), workers, random.Random(lag), lag, bool(lag // 2))
    run_traffic(engine, 400, salts=(None, None, "a"))
    for worker in workers:
        worker.store.cache.check_integrity()
        assert all(worker.owns(identifier) for identifier in worker.rows)
    assert not engine.failed
    assert (workers[0].num_loads > 10) == (host_pages > 0)
    assert workers[0].counts["compactions"] > 0


def test_random_traffic_with_refused_saves_reads_the_right_rows() -> None:
    import random

    inventory = Inventory(make_settings(8, 30))
    workers = [StoreWorker(inventory.settings) for _ in range(2)]
    dice = random.Random(1)
    workers[1].refuses = lambda key: dice.random() < 0.1
    engine = Engine(inventory, EncoderCacheModel(inventory), workers, random.Random(1), 2, True)
    run_traffic(engine, 400)
    workers[0].store.cache.check_integrity()
    assert inventory.counts.take()["refusals"] > 5
