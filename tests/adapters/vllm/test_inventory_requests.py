"""The inventory against requests that vLLM preempts in their own pass, or that can never run."""

from __future__ import annotations

from vllm_scene.passes import Pass, done, key
from vllm_scene.requests import make_request


def test_save_of_a_request_that_its_own_pass_preempts_is_forgotten() -> None:
    scene = Pass()
    request, how = scene.ask("a")
    assert how == "encode"
    scene.manager.free(request)
    orders = scene.close()
    assert not orders.saves
    assert scene.inventory.counts.take() == {}
    assert scene.run("a")[0] == "encode"


def test_item_of_a_preempted_request_is_encoded_for_the_next_one_of_the_pass() -> None:
    scene = Pass()
    request, _ = scene.ask("a")
    scene.manager.free(request)
    _, how = scene.ask("a")
    assert how == "encode"
    orders = scene.close()
    assert list(orders.saves) == ["a"]
    scene.inventory.report(done(orders))
    assert scene.ask("a")[1] == "cached"
    assert scene.inventory.counts.take()["encodes"] == 1


def test_load_of_a_request_that_its_own_pass_preempts_is_kept() -> None:
    scene = Pass(device_pages=1)
    scene.run("a")
    scene.run("b")
    request, how = scene.ask("a")
    assert how == "load"
    scene.manager.free(request)
    assert scene.ask("a")[1] == "cached"
    assert list(scene.close().loads) == ["a"]


def test_request_that_ends_between_passes_keeps_its_saves() -> None:
    scene = Pass()
    request, _ = scene.ask("a")
    orders = scene.close()
    scene.manager.free(request)
    scene.inventory.report(done(orders))
    assert scene.ask("a")[1] == "cached"


def test_request_waits_for_an_item_of_this_pass_if_saves_are_not_shared() -> None:
    scene = Pass(shares_saves=False)
    scene.ask("a", salt="one")
    assert scene.ask("a", salt="two")[1] == "wait"
    assert scene.ask("b")[1] == "encode"
    passed = make_request("passed", [("a", 4)])
    assert scene.inventory.admit(passed, passed.num_tokens)
    scene.close()
    assert scene.ask("a", salt="two")[1] == "cached"


def test_item_is_looked_up_with_its_own_number_of_rows() -> None:
    scene = Pass(device_pages=3)
    scene.run("uuid", 4)
    scene.run("b", 12)  # evicts it
    request = make_request("two", [("uuid", 8), ("uuid", 4)])
    assert scene.inventory.admit(request, 0)
    for index, is_found in ((0, False), (1, True)):
        scene.inventory.ask(request, index)
        assert scene.inventory.has("uuid") == is_found


def test_request_with_an_item_above_the_device_tier_fails_once() -> None:
    scene = Pass(device_pages=2)
    request = make_request("large", [("large", 9)])
    for _ in range(2):
        assert not scene.manager.can_allocate(request, 0, 1000, 0)
    assert scene.inventory.take_failed() == {"large"}
    assert scene.inventory.take_failed() == set()
    assert scene.run("a")[0] == "encode"
    assert key("large") not in scene.close().drops


def test_reset_keeps_the_requests_of_steps_in_flight() -> None:
    scene = Pass(device_pages=1)
    scene.run("a")
    scene.run("b")
    loader, _ = scene.ask("a")
    report = done(scene.close())
    report.lost.add("a")
    scene.manager.reset()
    other, how = scene.ask("a")
    assert how == "encode"
    orders = scene.close()
    scene.inventory.report(report)
    assert scene.inventory.take_failed() == {loader.request_id}
    scene.inventory.report(done(orders))
    scene.manager.free(other)
    assert scene.run("b")[0] == "encode"
    assert scene.run("a")[0] == "load"


def test_worker_that_was_cleared_before_a_reset_fails_its_readers_and_resets_nothing() -> None:
    scene = Pass()
    scene.run("a")
    reader, how = scene.ask("a")
    assert how == "cached"
    report = done(scene.close())
    report.is_cleared = True
    scene.manager.reset()
    other, how = scene.ask("a")
    assert how == "encode"
    orders = scene.close()
    scene.inventory.report(report)
    assert scene.inventory.take_failed() == {reader.request_id}
    scene.inventory.report(done(orders))
    scene.manager.free(other)
    assert scene.run("a")[0] == "cached"
    assert scene.close().epoch == 1
