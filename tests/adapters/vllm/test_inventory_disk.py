"""The inventory over a disk: requests wait for fetches, for a bounded time, and fetched rows are loaded."""

from __future__ import annotations

from typing import Any

import pytest
from vllm_scene.fake_disk import FakeDisk
from vllm_scene.passes import Pass, done, key
from vllm_scene.requests import Request, make_request
from vllm_scene.worker import WorkerModel

from vitcache.adapters.vllm.orders import StepOrders
from vitcache.adapters.vllm.tier_fetches import TierFetches
from vitcache.testing import FetchState, inspect_fetches

TIMEOUT_S = 0.1


class Scene(Pass):
    """Passes over an inventory with a fake disk, and the model worker that executes their orders."""

    def __init__(
        self,
        device_pages: int = 8,
        host_pages: int = 8,
        fetch_pages: int = 8,
        stored: str = "",
        rows: int = 4,
    ) -> None:
        super().__init__(device_pages, host_pages)
        self.worker = WorkerModel(self.inventory.settings)
        self.disk = FakeDisk(self.worker, fetch_pages)
        for name in stored:
            self.disk.contents[key(name)] = ("", name, rows, 0)
        self.fetches = self.inventory.fetches = self.disk.fetches(self.inventory.counts, TIMEOUT_S)

    def admit(self, *items: str, num_rows: int = 4, computed: int = 0) -> tuple[Request, bool]:
        self.number += 1
        request = make_request(f"r{self.number}", [(name, num_rows) for name in items])
        return request, self.inventory.admit(request, computed)

    def place(self, request: Request) -> list[str]:
        """Allocate the items of a request that was admitted; return how each gets its rows."""
        ways = []
        for index, feature in enumerate(request.mm_features):
            if self.manager.check_and_update_cache(request, index):
                ways.append("cached")
                continue
            assert self.manager.can_allocate(request, index, 1000, 0)
            ways.append("load" if self.inventory.has(feature.identifier) else "encode")
            self.manager.allocate(request, index)
            self.inventory.allocate(request, index)
        return ways

    def execute(self) -> StepOrders:
        """Close the pass, execute its orders, and report them."""
        orders = self.close()
        self.worker.begin(orders)
        for name, order in orders.saves.items():
            self.worker.encode(name, (order.key.salt, name, order.num_rows, 0), is_v2=True)
        self.worker.end()
        self.inventory.report(done(orders))
        return orders

    def serve(self, name: str) -> tuple[list[str], StepOrders]:
        """Admit, place, execute and finish a request; a fetch ends in time."""
        request, is_admitted = self.admit(name)
        if not is_admitted:
            self.disk.end_all()
            self.skip_pass()
            assert self.inventory.admit(request, 0)
        ways = self.place(request)
        orders = self.execute()
        self.manager.free(request)
        self.inventory.finish(request)
        return ways, orders

    def skip_pass(self) -> None:
        """End a pass that schedules no tokens."""
        assert self.inventory.close_step([], False) is None

    def state(self) -> FetchState:
        return inspect_fetches(self.fetches)

    def counts(self) -> dict[str, float]:
        return self.inventory.take_counts()


def test_stored_item_is_fetched_while_its_request_waits_and_then_loaded() -> None:
    scene = Scene(stored="a")
    request, is_admitted = scene.admit("a")
    assert not is_admitted
    scene.disk.now += 0.03
    scene.skip_pass()
    assert not scene.inventory.admit(request, 0)
    scene.disk.end_all()
    scene.skip_pass()
    assert scene.inventory.admit(request, 0)
    assert scene.place(request) == ["load"]
    assert scene.execute().loads["a"].key == key("a")
    counts = scene.counts()
    assert (counts["hits_lower"], counts["tier_waits"]) == (1, 1)
    assert counts["tier_wait_seconds"] == pytest.approx(0.03)
    assert "encodes" not in counts
    assert scene.disk.num_begun == 1


def test_fetched_item_is_of_the_host_tier_at_its_later_loads() -> None:
    scene = Scene(device_pages=1, stored="a")
    scene.serve("a")
    scene.serve("b")
    assert scene.serve("a")[0] == ["load"]
    counts = scene.counts()
    assert (counts["hits_lower"], counts["hits_host"]) == (1, 1)


def test_item_that_the_disk_lacks_is_encoded_after_its_answer() -> None:
    scene = Scene()
    assert scene.serve("a")[0] == ["encode"]
    assert scene.serve("a")[0] == ["cached"]
    assert scene.disk.num_begun == 1
    assert scene.state() == FetchState(set(), set(), 0, 0)


def test_late_item_is_encoded_at_the_deadline_and_its_late_rows_are_dropped() -> None:
    scene = Scene(stored="a")
    request, _ = scene.admit("a")
    [fetch] = scene.disk.running
    fetch.reserve()
    scene.disk.now += TIMEOUT_S
    scene.skip_pass()
    assert scene.inventory.admit(request, 0)
    assert fetch.is_cancelled
    assert scene.place(request) == ["encode"]
    fetch.is_cancelled = False  # it was being read already, so the rows arrive
    orders = scene.close()
    fetch.end()
    assert key("a") in scene.worker.host
    scene.worker.begin(orders)
    scene.worker.encode("a", ("", "a", 4, 0), is_v2=True)
    scene.inventory.report(done(orders))
    scene.admit("other")
    scene.execute()
    assert key("a") not in scene.worker.host or orders.saves["a"].to_host
    assert scene.state().num_used == 1  # of the other item


def test_late_rows_of_an_item_whose_save_was_refused_are_dropped() -> None:
    scene = Scene(host_pages=0, stored="a")
    request, _ = scene.admit("a")
    [fetch] = scene.disk.running
    fetch.reserve()
    scene.disk.now += TIMEOUT_S
    scene.skip_pass()
    assert scene.inventory.admit(request, 0)
    scene.place(request)
    fetch.is_cancelled = False
    scene.worker.refuses = lambda key: True
    orders = scene.close()
    scene.worker.begin(orders)
    scene.worker.encode("a", ("", "a", 4, 0), is_v2=True)
    fetch.end()
    assert key("a") in scene.worker.host
    scene.admit("other")  # sees the end of the fetch before the report
    assert list(scene.execute().host_drops) == [key("a")]
    assert key("a") not in scene.worker.host


def test_deadline_counts_from_the_first_pass_of_each_request() -> None:
    scene = Scene()
    first, _ = scene.admit("a")
    scene.disk.now += 0.06
    second, _ = scene.admit("b")
    scene.disk.now += 0.06
    scene.skip_pass()
    assert scene.inventory.admit(first, 0)
    assert not scene.inventory.admit(second, 0)
    scene.disk.now += 0.06
    assert scene.inventory.admit(second, 0)


def test_request_waits_once_even_if_it_is_not_scheduled_after_the_answer() -> None:
    scene = Scene()
    request, _ = scene.admit("a")
    scene.disk.end_all()
    for _ in range(3):
        scene.skip_pass()
        assert scene.inventory.admit(request, 0)
    assert scene.disk.num_begun == 1


def test_disk_that_is_off_delays_no_request_by_a_pass() -> None:
    scene = Scene(stored="a")
    scene.disk.is_off = True
    request, is_admitted = scene.admit("a")
    assert is_admitted
    assert scene.place(request) == ["encode"]
    scene.execute()
    assert "tier_waits" not in scene.counts()


def test_two_requests_with_one_item_wait_for_one_fetch() -> None:
    scene = Scene(stored="a")
    first, second = scene.admit("a")[0], scene.admit("a")[0]
    assert scene.disk.num_begun == 1
    scene.disk.end_all()
    scene.skip_pass()
    assert scene.inventory.admit(first, 0)
    assert scene.inventory.admit(second, 0)
    assert (scene.place(first), scene.place(second)) == (["load"], ["cached"])


def test_fetch_is_cancelled_when_its_last_request_ends() -> None:
    scene = Scene(stored="a")
    first, second = scene.admit("a")[0], scene.admit("a")[0]
    [fetch] = scene.disk.running
    scene.inventory.finish(first)
    assert not fetch.is_cancelled
    scene.inventory.finish(second)
    assert fetch.is_cancelled
    assert scene.admit("a")[1]  # no request waits for a fetch that was cancelled
    scene.disk.end_all()
    scene.skip_pass()
    scene.admit("b")
    assert {item.key for item in scene.state().fetches} == {key("b")}


def test_fetched_entry_that_no_request_needs_is_the_first_that_the_host_tier_drops() -> None:
    scene = Scene(device_pages=1, host_pages=1, stored="a")
    request, _ = scene.admit("a")
    scene.disk.end_all()
    scene.inventory.finish(request)  # its client has left
    scene.serve("b")
    orders = scene.serve("c")[1]
    assert list(orders.drops) == [key("a")]
    assert list(orders.demotions) == [key("b")]


def test_fetch_of_an_item_makes_room_in_the_host_tier_when_it_has_ended() -> None:
    scene = Scene(device_pages=1, host_pages=1, fetch_pages=1, stored="d")
    for name in "abc":
        scene.serve(name)
    assert list(scene.worker.host) == [key("b")]
    request, _ = scene.admit("d")
    scene.disk.end_all()
    scene.skip_pass()
    assert scene.inventory.admit(request, 0)
    assert scene.admit("e")[1]  # the page of the fetch is not free before the orders are executed
    assert scene.disk.num_begun == 4
    assert scene.place(request) == ["load"]
    orders = scene.execute()
    assert list(orders.drops) == [key("b"), key("c")]
    assert not scene.admit("f")[1]


def test_items_beyond_the_pages_for_fetches_are_fetched_in_turns() -> None:
    scene = Scene(fetch_pages=3, stored="abc")  # one page is left for an entry that is being written
    request, _ = scene.admit("a", "b", "c")
    assert scene.disk.num_begun == 2
    scene.disk.end_all()
    scene.skip_pass()
    assert not scene.inventory.admit(request, 0)
    assert scene.disk.num_begun == 3
    scene.disk.end_all()
    scene.skip_pass()
    assert scene.inventory.admit(request, 0)
    assert scene.place(request) == ["load"] * 3


def test_item_that_is_larger_than_the_pages_for_fetches_is_encoded_at_once() -> None:
    scene = Scene(fetch_pages=3, stored="a", rows=12)
    request, is_admitted = scene.admit("a", num_rows=12)
    assert is_admitted
    assert scene.place(request) == ["encode"]


def test_pages_that_a_fetch_may_still_write_are_not_used_for_others() -> None:
    scene = Scene(fetch_pages=3, stored="ab")
    scene.disk.lost = 1
    scene.admit("a", "b")
    assert scene.disk.num_begun == 1


def test_each_tier_may_read_pages_of_its_own_that_no_fetch_gets() -> None:
    scene = Scene(stored="abcd")
    counts = scene.inventory.counts
    scene.inventory.fetches = TierFetches(
        scene.disk, 5, TIMEOUT_S, counts, num_tiers=2, clock=scene.disk.clock
    )
    scene.admit("a", "b", "c", "d")
    assert scene.disk.num_begun == 3


def test_resident_item_of_another_tenant_is_not_fetched() -> None:
    scene = Scene(stored="a")
    scene.serve("a")
    request = make_request("salted", [("a", 4)], "tenant")
    assert scene.inventory.admit(request, 0)
    assert scene.place(request) == ["cached"]


def test_tenants_fetch_their_own_rows() -> None:
    scene = Scene(stored="a")
    request = make_request("salted", [("a", 4)], "tenant")
    assert not scene.inventory.admit(request, 0)
    [fetch] = scene.disk.running
    assert fetch.item.key == key("a", "tenant")


def test_reset_drops_the_name_and_fetches_nothing_before_its_step_is_executed() -> None:
    scene = Scene(stored="ab")
    request, _ = scene.admit("a")
    [fetch] = scene.disk.running
    scene.manager.reset()
    assert scene.disk.num_resets == 1
    assert fetch.is_cancelled
    assert scene.inventory.admit(request, 0)
    assert scene.place(request) == ["encode"]
    assert scene.disk.num_begun == 1
    scene.execute()
    assert not scene.admit("b")[1]
    assert scene.state().num_used == 2  # the fetch of before may still run
    scene.disk.end_all()
    scene.skip_pass()
    scene.admit("c")
    assert scene.state().num_used == 1


def offers(scene: Scene, name: str, uses: int) -> list[int]:
    """The uses of an item, counted from 1, at which it is offered to the disk."""
    return [use for use in range(1, uses + 1) if key(name) in scene.serve(name)[1].offers]


def test_item_is_offered_at_its_second_hit_and_again_at_twice_as_many() -> None:
    scene = Scene()
    assert offers(scene, "a", 18) == [3, 5, 9, 17]
    assert key("a") in scene.disk.contents


def test_loads_from_the_host_tier_count_as_hits_and_those_of_fetched_rows_do_not() -> None:
    scene = Scene(device_pages=1, stored="b")
    found: dict[str, list[int]] = {"a": [], "b": []}
    for use in range(1, 5):
        for name in "ab":
            if key(name) in scene.serve(name)[1].offers:
                found[name].append(use)
    assert found == {"a": [3], "b": [3]}


def test_image_that_the_prefix_cache_contains_counts_as_a_hit() -> None:
    scene = Scene()
    scene.serve("a")
    for use in (2, 3):
        request, is_admitted = scene.admit("a", computed=5)
        assert is_admitted
        assert (key("a") in scene.close().offers) == (use == 3)
        scene.inventory.finish(request)


def test_offer_of_an_entry_that_is_dropped_in_the_same_pass_is_not_ordered() -> None:
    scene = Scene(device_pages=1, host_pages=1)
    scene.serve("a"), scene.serve("b")  # a is alone in the host tier
    for _ in range(2):
        request, _ = scene.admit("a", computed=5)
        scene.inventory.finish(request)
    orders = scene.serve("c")[1]
    assert list(orders.drops) == [key("a")]
    assert not orders.offers


def test_offered_entry_without_a_host_copy_takes_the_place_of_another_copy() -> None:
    scene = Scene(device_pages=2, host_pages=1)
    scene.serve("a"), scene.serve("b")  # a has the copy
    scene.serve("b")
    orders = scene.serve("b")[1]
    assert list(orders.host_drops) == [key("a")]
    assert list(orders.offers) == [key("b")]
    assert key("b") in scene.disk.contents


def test_entry_that_can_have_no_copy_is_offered_when_it_is_demoted() -> None:
    scene = Scene(device_pages=2, host_pages=2)
    scene.serve("wide"), scene.serve("a")
    scene.serve("b"), scene.serve("c")  # both of them are alone in the host tier
    for _ in range(3):
        assert not scene.serve("c")[1].offers
    scene.serve("d")
    orders = scene.serve("e")[1]
    assert list(orders.demotions) == list(orders.offers) == [key("c")]


def test_without_a_disk_nothing_is_offered() -> None:
    scene: Any = Pass()
    for _ in range(5):
        assert not scene.run("a")[1].offers
