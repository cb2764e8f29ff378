"""The worker's store over a disk: offered rows outlive it, and a later one fetches them."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_scene.encoder_cache import EncoderCacheModel
from vllm_scene.engine import Engine, run_traffic
from vllm_scene.requests import make_settings
from vllm_scene.store_worker import StoreWorker, make_rows

from vitcache.adapters.vllm import tier_settings
from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.orders import ItemKey, LoadOrder, SaveOrder, StepOrders, StepReport
from vitcache.adapters.vllm.tier_fetches import Item, TierFetches
from vitcache.adapters.vllm.worker_tiers import ItemFetch, WorkerTiers
from vitcache.tiers.disk_tier import DiskTier
from vitcache.tiers.memory_tier import MemoryTier

WIDTH = 8
WAIT_S = 60.0


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a disk take as long as it takes, also on a busy machine."""
    monkeypatch.setattr(tier_settings, "FETCH_TIMEOUT_S", WAIT_S)


class Scene:
    """A store over a folder, with orders written by hand."""

    def __init__(
        self, folder: Path, name: str | None = "weights", device_pages: int = 8, **options: Any
    ) -> None:
        options = {"disk": str(folder), "disk_bytes": "16MiB", "weights_name": name, **options}
        self.settings = make_settings(device_pages, 8, **options)
        self.worker = StoreWorker(self.settings)
        self.store = self.worker.store
        self.disk = WorkerTiers(lambda: self.store, self.settings.page_bytes)
        self.step = 0

    def run(self, **fields: Any) -> StepReport:
        self.step += 1
        self.worker.begin(StepOrders(self.step, **fields))
        for name, order in self.worker.orders.saves.items():
            self.worker.encode(name, (order.key.salt, name, order.num_rows, 0), is_v2=False)
        return self.store.end() or StepReport(self.step, 0)

    def keep(self, *names: str, salt: str = "") -> None:
        """Save items and write them to the disk."""
        saves = {name: SaveOrder(ItemKey(salt, name), 4, 1, False) for name in names}
        self.run(saves=saves, offers=dict.fromkeys(ItemKey(salt, name) for name in names))
        assert self.store.cache.flush(WAIT_S)

    def fetch(self, name: str, num_rows: int = 4, salt: str = "") -> bool:
        """Fetch an item, and wait for the disk."""
        fetch = self.store.begin_fetch(Item(ItemKey(salt, name), num_rows, WIDTH, 1))
        fetch.wait(WAIT_S)
        return ItemFetch(fetch).found()

    def close(self) -> None:
        self.store.close()


@pytest.fixture
def scenes(tmp_path: Path) -> Iterator[Any]:
    """Makes a `Scene` on the folder of the test; the earlier one is closed before."""
    made: list[Scene] = []

    def make(*arguments: Any, **options: Any) -> Scene:
        for scene in made:
            scene.close()
        made.append(Scene(tmp_path / "disk", *arguments, **options))
        return made[-1]

    yield make
    for scene in made:
        scene.close()


def test_offered_rows_are_loaded_by_a_later_store_bit_for_bit(scenes: Any) -> None:
    scenes().keep("a", "b")
    scene = scenes()
    assert scene.fetch("a")
    report = scene.run(loads={"a": LoadOrder(ItemKey("", "a"), 4)})
    assert not report.lost
    assert torch.equal(scene.worker.rows["a"], make_rows("a", 4, 0, WIDTH))
    assert scene.worker.owns("a")
    assert not scene.fetch("c")
    counts = scene.disk.counts()
    assert (counts["tier_fetches_disk_hit"], counts["tier_fetches_disk_miss"]) == (1, 1)
    assert counts["tier_fetched_bytes_disk"] == 4 * WIDTH * 4
    assert scene.disk.counts()["tier_fetches_disk_hit"] == 0


class SharedStore(MemoryTier):
    """Stands for a Mooncake store, in the memory of the process."""

    name = "mooncake"


@pytest.mark.parametrize("disk", [{"disk": None, "disk_bytes": None}, {}], ids=["alone", "below a disk"])
def test_rows_of_one_machine_are_found_by_another_one_in_the_store(
    disk: dict[str, None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SharedStore("1MiB")
    monkeypatch.setattr(tier_settings, "MooncakeTier", lambda *_, **__: store)
    for number in range(2):
        scene = Scene(tmp_path / str(number), mooncake="127.0.0.1:9", **disk)
        if number == 0:
            scene.keep("a")
            scene.store.close()
    assert scene.fetch("a")
    assert not scene.fetch("b")
    counts = scene.disk.counts()
    assert (counts["tier_fetches_mooncake_hit"], counts["tier_fetches_mooncake_miss"]) == (1, 1)
    assert counts.get("tier_fetches_disk_miss") == (None if disk else 2)
    assert scene.disk.num_lost_pages() == 0
    scene.store.close()


def test_encode_time_is_measured_until_a_step_has_rows_of_another_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SharedStore("1MiB")
    store.worth = 0.5
    monkeypatch.setattr(tier_settings, "MooncakeTier", lambda *_, **__: store)
    scene = Scene(tmp_path, mooncake="127.0.0.1:9", disk=None, disk_bytes=None)
    times = scene.store.cache.encode_times
    assert times is not None
    assert times.by_width() == {}
    scene.keep("a")
    before = times.by_width()
    assert list(before) == [WIDTH]
    saves = {"narrow": SaveOrder(ItemKey("", "narrow"), 4, 1, False)}
    scene.worker.begin(StepOrders(2, saves=saves))
    scene.worker.rows["narrow"] = torch.ones(4, WIDTH // 2)
    scene.store.save("narrow")
    report = scene.store.end()
    assert report is not None
    assert ItemKey("", "narrow") in report.saved
    scene.keep("b")
    assert times.by_width() == before
    scene.store.close()


@pytest.mark.parametrize("name", ["other", None])
def test_store_with_another_name_finds_nothing(scenes: Any, name: str | None) -> None:
    scenes(name).keep("a")
    assert not scenes("weights").fetch("a")
    if name is not None:
        assert scenes(name).fetch("a")


def test_rows_are_found_only_for_their_tenant_and_number_of_rows(scenes: Any) -> None:
    scenes().keep("a", salt="one\ud800")
    scene = scenes()
    assert not scene.fetch("a")
    assert not scene.fetch("a", 5, salt="one\ud800")
    assert scene.fetch("a", salt="one\ud800")


def test_rows_that_are_not_offered_are_not_written(scenes: Any) -> None:
    scene = scenes()
    scene.run(saves={"a": SaveOrder(ItemKey("", "a"), 4, 1, True)})
    assert scene.store.cache.flush(WAIT_S)
    assert scene.disk.counts()["tier_stores_disk"] == 0


def test_dropped_entries_stay_on_the_disk(scenes: Any) -> None:
    scene = scenes()
    scene.keep("a", "b")
    scene.worker.rows.pop("a"), scene.worker.rows.pop("b")
    scene.run(releases=["a"], drops={ItemKey("", "a"): None})
    scene.run(releases=["b"], demotions={ItemKey("", "b"): None})
    scene.run(host_drops={ItemKey("", "b"): None})
    assert scene.fetch("a")
    assert scene.fetch("b")


def test_reset_drops_the_name_here_and_after_a_restart(scenes: Any) -> None:
    scene = scenes()
    scene.keep("a")
    scene.disk.reset()
    assert not scene.fetch("a")
    scene.worker.begin(StepOrders(scene.step + 1, 1))
    scene.store.end()
    assert not scene.fetch("a")
    assert not scenes().fetch("a")


def test_encoder_cache_that_was_cleared_alone_drops_the_name(scenes: Any) -> None:
    scene = scenes()
    scene.keep("a")
    scene.worker.rows.clear()  # as `reload_weights` does
    assert scene.run().is_cleared
    assert not scenes().fetch("a")


def test_fetch_evicts_no_host_entry(scenes: Any) -> None:
    scenes().keep("a")
    scene = scenes()
    pages = scene.settings.host_pages + scene.settings.fetch_pages
    for number in range(pages):
        scene.store.cache.put(number.to_bytes(32, "big"), torch.zeros(4, WIDTH), tier="host")
    assert not scene.fetch("a")
    assert len(scene.store.cache) == pages
    assert scene.disk.counts()["tier_fetches_disk_refused"] == 1


def test_disk_leases_no_device_pages_and_offers_an_entry_without_room_again_later(scenes: Any) -> None:
    scene = scenes()
    pages = scene.settings.host_pages + scene.settings.fetch_pages
    for number in range(pages):
        scene.store.cache.put(number.to_bytes(32, "big"), torch.zeros(4, WIDTH), tier="host")
    scene.keep("a")
    assert scene.disk.counts()["tier_stores_disk"] == 0
    scene.store.cache.evict(bytes(32))
    scene.run(offers={ItemKey("", "a"): None})
    assert scene.store.cache.flush(WAIT_S)
    assert scene.disk.counts()["tier_stores_disk"] == 1


def test_worker_without_a_store_fetches_nothing() -> None:
    disk = WorkerTiers(lambda: None, 128)
    fetch = disk.begin(Item(ItemKey("", "a"), 4, WIDTH, 1))
    assert (fetch.done, fetch.found()) == (True, False)
    fetch.cancel()
    disk.reset()
    assert (disk.num_lost_pages(), disk.counts()) == (0, {})


class SlowClock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_hanging_disk_delays_each_request_by_the_deadline_and_then_none(
    scenes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes().keep("a", "b")
    released = threading.Event()
    fetch = DiskTier.fetch

    def hang(*arguments: Any) -> Any:
        released.wait(WAIT_S)
        return fetch(*arguments)

    monkeypatch.setattr(DiskTier, "fetch", hang)
    scene = scenes()
    try:
        inventory, clock = Inventory(scene.settings), SlowClock()
        pages = scene.settings.fetch_pages
        inventory.fetches = TierFetches(scene.disk, pages, 0.1, inventory.counts, clock=clock)
        engine = Engine(inventory, EncoderCacheModel(inventory), [scene.worker], None, 0, True)  # type: ignore[arg-type]
        late = engine.add_request([("a", 4)])
        assert not inventory.admit(late, 0)
        clock.now = 0.1
        assert inventory.admit(late, 0)
        assert not scene.store.begin_fetch(Item(ItemKey("", "a"), 4, WIDTH, 1)).wait(0.0)[0]
    finally:
        released.set()


class RandomDisk(WorkerTiers):
    """Half of the fetches end before the next pass. The rest race with it."""

    rng = random.Random(0)

    def begin(self, item: Item) -> ItemFetch:
        fetch = super().begin(item)
        if self.rng.random() < 0.5:
            assert fetch._fetch is not None
            fetch._fetch.wait(WAIT_S)
        return fetch


@pytest.mark.parametrize("lag", range(2))
@pytest.mark.parametrize(("device_pages", "host_pages"), [(8, 6), (12, 40)])
@pytest.mark.parametrize("has_store", [False, True], ids=["disk", "disk and store"])
def test_random_traffic_over_the_tiers_reads_the_right_rows(
    lag: int,
    device_pages: int,
    host_pages: int,
    has_store: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = SharedStore("16MiB")
    monkeypatch.setattr(tier_settings, "MooncakeTier", lambda *_, **__: store)
    for seed in range(2):  # the second engine finds rows of the first
        options = {"disk": str(tmp_path / "disk"), "disk_bytes": "16MiB", "weights_name": "weights"}
        if has_store:
            options["mooncake"] = "127.0.0.1:9"
        inventory = Inventory(make_settings(device_pages, host_pages, **options))
        worker = StoreWorker(inventory.settings, waits_after_encoder=True)
        disk = RandomDisk(lambda store=worker.store: store, inventory.settings.page_bytes)  # type: ignore[misc]
        clock = itertools.count().__next__  # a request waits for about 50 passes, however fast they are
        pages = inventory.settings.fetch_pages
        inventory.fetches = TierFetches(
            disk, pages, 250, inventory.counts, num_tiers=1 + has_store, clock=clock
        )
        engine = Engine(inventory, EncoderCacheModel(inventory), [worker], random.Random(seed), lag, True)
        run_traffic(engine, 1000, num_items=30, salts=(None, None, "a"))
        worker.store.cache.check_integrity()
        assert not engine.failed
        assert worker.store.cache.flush(WAIT_S)
        counts = inventory.take_counts()
        assert min(counts["tier_stores_disk"], counts["tier_fetches_disk_hit"]) > 0
        assert ("tier_stores_mooncake" in counts) == has_store
        worker.store.close()
