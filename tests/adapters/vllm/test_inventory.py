"""The scheduler's inventory: which rows are loaded, saved, demoted and dropped, and when."""

from __future__ import annotations

import pytest
from vllm_scene.passes import Pass, done, key
from vllm_scene.requests import make_request

from vitcache.adapters.vllm.inventory import MOST_DEFERRALS
from vitcache.adapters.vllm.orders import StepReport


def test_item_is_encoded_then_cached_then_loaded_after_eviction() -> None:
    scene = Pass(device_pages=2)
    assert scene.run("a")[0] == "encode"
    assert scene.run("a")[0] == "cached"
    assert scene.run("b")[0] == "encode"
    how, orders = scene.run("c")
    assert how == "encode"
    assert orders.releases == ["a"]
    assert list(orders.demotions) == [key("a")]
    how, orders = scene.run("a")
    assert how == "load"
    assert orders.loads["a"].key == key("a")
    assert not orders.saves


def test_save_is_written_through_while_host_pages_are_free_and_not_after() -> None:
    scene = Pass(device_pages=8, host_pages=2)
    assert scene.run("a")[1].saves["a"].to_host
    assert scene.run("b")[1].saves["b"].to_host
    assert not scene.run("c")[1].saves["c"].to_host


def test_demotion_drops_copies_of_device_entries_before_host_entries() -> None:
    scene = Pass(device_pages=3, host_pages=3)
    for name in "abc":
        scene.run(name)  # each has a copy
    orders = scene.run("d")[1]  # evicts a, whose copy stays
    assert list(orders.demotions) == [key("a")]
    assert not orders.saves["d"].to_host
    scene.run("b")
    orders = scene.run("e")[1]  # evicts b or c; both have copies
    assert not orders.drops
    scene.run("d")
    orders = scene.run("f")[1]
    assert key("a") not in orders.drops


def test_host_tier_without_room_for_an_evicted_entry_drops_its_least_recently_used() -> None:
    scene = Pass(device_pages=1, host_pages=2)
    for name in "abc":
        scene.run(name)
    orders = scene.run("d")[1]
    assert list(orders.drops) == [key("a")]
    assert list(orders.demotions) == [key("c")]


def test_entry_that_is_loaded_in_this_step_is_not_dropped_for_another() -> None:
    scene = Pass(device_pages=2, host_pages=1)
    scene.run("a")
    scene.run("b", 8)  # evicts a, which is alone in the host tier
    assert scene.ask("a")[1] == "load"
    orders = scene.close()
    assert list(orders.drops) == [key("b")]
    assert key("a") not in orders.drops
    assert orders.loads["a"].key == key("a")


def test_item_larger_than_the_host_tier_is_dropped_and_nothing_else() -> None:
    scene = Pass(device_pages=4, host_pages=2)
    scene.run("small")
    scene.run("large", 16)
    orders = scene.run("next", 16)[1]
    assert list(orders.drops) == [key("large")]
    assert scene.run("small")[0] == "load"


def test_promised_entry_is_not_dropped_before_its_allocation() -> None:
    scene = Pass(device_pages=3, host_pages=1)
    scene.run("a")
    scene.run("b", 12)
    request = make_request("two", [("c", 4), ("a", 4)])
    assert scene.inventory.admit(request, 0)
    assert scene.manager.can_allocate(request, 0, 100, 0)
    assert not scene.inventory.has("c")
    assert scene.manager.can_allocate(request, 1, 100, 4)
    assert scene.inventory.has("a")
    for index in (0, 1):
        scene.manager.allocate(request, index)
        scene.inventory.allocate(request, index)
    orders = scene.close()
    assert key("a") not in orders.drops
    assert "a" in orders.loads


@pytest.mark.parametrize("is_saved", [True, False])
def test_entry_evicted_before_its_report_makes_requests_wait_for_it(is_saved: bool) -> None:
    scene = Pass(device_pages=1)
    first, _ = scene.ask("a")
    saving = scene.close()
    scene.manager.free(first)
    second, _ = scene.ask("b")
    scene.close()
    scene.manager.free(second)
    assert scene.ask("a")[1] == "wait"
    report = done(saving)
    scene.inventory.report(report if is_saved else StepReport(report.step, report.epoch))
    assert scene.ask("a")[1] == ("load" if is_saved else "encode")
    assert scene.inventory.counts.take()["deferrals"] == 1


def test_request_that_waited_in_vain_is_encoded_again() -> None:
    scene = Pass(device_pages=1)
    first, _ = scene.ask("a")
    scene.close()
    scene.manager.free(first)
    second, _ = scene.ask("b")
    scene.close()
    scene.manager.free(second)
    answers = {scene.ask("a")[1] for _ in range(MOST_DEFERRALS)}
    assert answers == {"wait"}
    assert scene.ask("a")[1] == "encode"


def test_report_of_a_later_step_refuses_saves_without_report() -> None:
    scene = Pass()
    scene.ask("a")
    scene.close()
    scene.ask("b")
    scene.inventory.report(done(scene.close()))
    counts = scene.inventory.counts.take()
    assert counts["refusals"] == 1
    assert list(scene.close().drops) == [key("a")]


def test_report_of_another_epoch_confirms_nothing() -> None:
    scene = Pass(device_pages=1)
    scene.ask("a")
    old = scene.close()
    scene.manager.reset()
    scene.inventory.report(done(old))
    assert scene.run("a")[0] == "encode"
    assert scene.run("b")[0] == "encode"
    assert scene.run("a")[0] == "load"


def test_reset_forgets_every_tier_and_advances_the_epoch() -> None:
    scene = Pass(device_pages=1)
    scene.run("a")
    scene.run("b")
    scene.manager.reset()
    how, orders = scene.run("a")
    assert how == "encode"
    assert orders.epoch == 1
    assert not orders.loads
    assert not orders.demotions


def test_equal_identifiers_with_other_salts_are_other_entries() -> None:
    scene = Pass(device_pages=1)
    scene.run("a", salt="one")
    scene.run("b", salt="one")
    assert scene.run("a", salt="two")[0] == "encode"
    assert scene.run("b", salt=None)[0] == "encode"
    assert scene.run("a", salt="one")[0] == "load"
    assert scene.run("a", salt="one")[0] == "cached"


def test_entry_with_another_number_of_rows_is_replaced() -> None:
    scene = Pass(device_pages=2)
    scene.run("a", 4)
    scene.run("b", 8)
    how, orders = scene.run("a", 8)
    assert how == "encode"
    assert list(orders.drops) == [key("a")]
    assert orders.saves["a"].num_rows == 8


def test_item_evicted_and_wanted_again_in_one_pass_is_neither_loaded_nor_encoded() -> None:
    scene = Pass(device_pages=2)
    scene.run("a")
    scene.run("b")
    request = make_request("both", [("c", 4), ("a", 4)])
    assert scene.inventory.admit(request, 0)
    assert scene.manager.can_allocate(request, 0, 100, 0)  # evicts a
    assert scene.manager.can_allocate(request, 1, 100, 4)  # evicts b
    assert scene.inventory.has("a")
    for index in (0, 1):
        scene.manager.allocate(request, index)
        scene.inventory.allocate(request, index)
    orders = scene.close()
    assert list(orders.saves) == ["c"]
    assert not orders.loads
    assert orders.releases == ["b"]


def test_orders_of_steps_that_are_not_executed_go_with_the_next_step() -> None:
    scene = Pass(device_pages=2)
    scene.run("a")
    scene.run("b")
    request = make_request("c", [("c", 8)])
    assert scene.manager.can_allocate(request, 0, 100, 0)  # and then there are no KV blocks
    assert scene.inventory.close_step(scene.manager.get_freed_mm_hashes(), False) is None
    how, orders = scene.run("a")
    assert how == "load"
    assert sorted(orders.releases) == ["a", "b"]
    assert set(orders.demotions) == {key("a"), key("b")}


def test_save_that_is_freed_in_its_own_pass_is_cancelled() -> None:
    scene = Pass(device_pages=1)
    request, _ = scene.ask("a")
    scene.manager.free(request)  # preempted in the same pass
    scene.ask("b")
    orders = scene.close()
    assert list(orders.saves) == ["b"]
    assert not orders.demotions
    scene.inventory.report(done(orders))
    assert scene.inventory.counts.take().get("refusals", 0) == 0


def test_lost_rows_fail_the_requests_that_use_them_and_are_encoded_again() -> None:
    scene = Pass(device_pages=1)
    scene.run("a")
    scene.run("b")
    loader, how = scene.ask("a")
    assert how == "load"
    user, how = scene.ask("a")
    assert how == "cached"
    orders = scene.close()
    report = done(orders)
    report.lost.add("a")
    scene.inventory.report(report)
    assert scene.inventory.take_failed() == {loader.request_id, user.request_id}
    assert scene.inventory.take_failed() == set()
    assert scene.inventory.counts.take()["losses"] == 1
    for request in (loader, user):
        scene.manager.free(request)
    how, orders = scene.run("a")
    assert how == "encode"
    assert key("a") in orders.drops


def test_worker_that_was_cleared_alone_fails_the_requests_that_read_rows() -> None:
    scene = Pass()
    scene.run("a")
    scene.run("b")
    readers = [scene.ask("a")[0], scene.ask("a")[0]]
    orders = scene.close()
    late = scene.ask("b")[0]  # scheduled before the report
    scene.close()
    for request in (*readers, late):
        scene.manager.free(request)
    report = done(orders)
    report.is_cleared = True
    scene.inventory.report(report)
    assert scene.inventory.take_failed() == {request.request_id for request in (*readers, late)}
    assert scene.run("a")[0] == "encode"
    assert scene.run("b")[1].epoch == 1


def test_entry_that_one_rank_lacks_is_not_loaded() -> None:
    scene = Pass(device_pages=1)
    request, _ = scene.ask("a")
    orders = scene.close()
    scene.inventory.report(done(orders).merge(StepReport(orders.step, orders.epoch)))
    scene.manager.free(request)
    scene.run("b")
    assert scene.run("a")[0] == "encode"


def test_reports_of_different_steps_confirm_nothing_together() -> None:
    merged = StepReport(3, 0, {key("a")}).merge(StepReport(4, 0, {key("a")}))
    assert (merged.step, merged.saved) == (4, set())


def test_hits_are_counted_once_per_request_with_bytes_and_milliseconds_by_tier() -> None:
    scene = Pass(device_pages=1)
    request, _ = scene.ask("a")
    orders = scene.close()
    report = done(orders)
    report.counts, report.encoded_rows = {"encode_seconds": 0.008}, 4
    scene.inventory.report(report)
    again = make_request("again", [("a", 4)])
    for _ in range(3):  # chunks
        assert scene.manager.check_and_update_cache(again, 0)
    scene.manager.free(request)
    scene.manager.free(again)
    scene.run("b")
    scene.run("a")
    counts = scene.inventory.counts.take()
    assert counts["hits_device"] == 1
    assert counts["hits_host"] == 1
    assert counts["hit_bytes_host"] == 4 * 8 * 4
    assert counts["saved_seconds_device"] == pytest.approx(0.008)
    assert counts["encodes"] == 2
    assert counts["encode_seconds"] == 0.008
    assert scene.inventory.counts.take() == {}


def test_request_with_a_lone_surrogate_in_its_identifier_is_served() -> None:
    assert Pass().run("\ud800")[0] == "encode"


def test_item_is_found_by_its_identifier_alone_with_the_salt_of_the_admitted_request() -> None:
    scene = Pass(device_pages=1)
    scene.run("a", salt="one")
    scene.run("b", salt="one")
    assert not scene.inventory.has("a")
    assert scene.inventory.admit(make_request("r", [("a", 4)], "two"), 0)
    assert not scene.inventory.has("a")
    assert scene.inventory.admit(make_request("r", [("a", 4)], "one"), 0)
    assert scene.inventory.has("a")
