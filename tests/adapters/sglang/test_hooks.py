"""The hooks, called around functions of a stand-in for SGLang."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_fakes.modules import importable, write
from sglang_fakes.requests import Inputs, image, request
from sglang_fakes.scene import Scene, Window

from vitcache.adapters.sglang import hooks, service, start_up
from vitcache.adapters.sglang.loaded_weights import LOADED
from vitcache.adapters.sglang.plugin import register
from vitcache.adapters.sglang.server_info import server_counts
from vitcache.adapters.sglang.stock_cache import StockCache
from vitcache.adapters.sglang.tenant import NO_TENANT, tenant_of


class Service:
    """Records the calls of the hooks. `result` is that of `embed`."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.calls: list[Any] = []
        self.arrivals = self
        self.held = self
        self.are_fetched = True

    @contextmanager
    def entry(self, scheduler: Any) -> Iterator[None]:
        self.calls.append(("entry", list(scheduler.waiting_queue)))
        yield
        self.calls.append(("entered", list(scheduler.waiting_queue)))

    @contextmanager
    def choice(self, scheduler: Any) -> Iterator[None]:
        self.calls.append("choice")
        yield
        self.calls.append("chosen")

    def fetch(self, scheduler: Any, request: Any) -> None:
        self.calls.append(("fetch", request))

    def pause(self) -> None:
        self.calls.append("pause")

    def embed(self, *arguments: Any, batch: Any) -> Any:
        self.calls.append((arguments, batch))
        return self.result

    def clear(self) -> None:
        self.calls.append("clear")

    def advance_epoch(self) -> None:
        self.calls.append("advance_epoch")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Service:
    """The service of a process that has embedded a step."""
    used = Service(("rows", {}))
    monkeypatch.setattr(service, "SERVICE", used)
    return used


@pytest.fixture
def managers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The hooked modules of the stand-in."""
    monkeypatch.setattr(start_up, "STOCK_CACHE", StockCache())
    write(tmp_path)
    with importable(tmp_path):
        register()
        names = ("mm_utils", "mm_schedule", "schedule_batch", "scheduler")
        loaded = {name: importlib.import_module(f"sglang.srt.managers.{name}") for name in names}
        loaded["updater"] = importlib.import_module("sglang.srt.managers.scheduler_components.weight_updater")
        yield SimpleNamespace(**loaded)


def make_scheduler(managers: Any) -> Any:
    """A scheduler of the stand-in, whose start is not checked."""
    scheduler = object.__new__(managers.scheduler.Scheduler)
    scheduler.waiting_queue = []
    return scheduler


def test_embed_gets_all_arguments_in_order_and_the_batch_of_prepare(managers: Any, used: Service) -> None:
    inputs, ids = Inputs([]), torch.zeros(2, dtype=torch.long)
    batch = SimpleNamespace(mm_inputs=[None, inputs])
    assert managers.mm_utils.prepare_mm_inputs(ids, batch, None, {}) == ("rows", {})
    [(arguments, found)] = used.calls
    assert found is batch
    assert arguments == ([inputs], [0], [0], ids, None, None, None, None, {})
    assert hooks.FORWARD_BATCH.get() is None


@pytest.mark.parametrize("is_named", [True, False])
def test_prepare_forgets_its_batch_also_after_an_error(managers: Any, used: Service, is_named: bool) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KeyError(hooks.FORWARD_BATCH.get())

    arguments = ((), {"forward_batch": "batch"}) if is_named else (("ids", "batch"), {})
    with pytest.raises(KeyError, match="batch"):
        hooks.around_prepare(fails, *arguments[0], **arguments[1])
    assert hooks.FORWARD_BATCH.get() is None


def test_nested_prepare_restores_the_batch_of_the_outer_one() -> None:
    def outer(*_: Any, **__: Any) -> list[Any]:
        inner = hooks.around_prepare(lambda *_: hooks.FORWARD_BATCH.get(), "ids", "inner")
        return [inner, hooks.FORWARD_BATCH.get()]

    assert hooks.around_prepare(outer, "ids", "outer") == ["inner", "outer"]


def test_embed_outside_of_prepare_has_no_batch(managers: Any, used: Service) -> None:
    managers.mm_utils.embed_mm_inputs([], [], [], None, None)
    assert used.calls[0][1] is None


def test_none_as_requests_is_left_to_sglang(managers: Any, used: Service) -> None:
    assert managers.mm_utils.embed_mm_inputs(None, [], [], None, None) == "stock"
    assert used.calls == []


def test_step_that_the_service_leaves_is_computed_by_sglang(managers: Any, used: Service) -> None:
    used.result = None
    assert managers.mm_utils.embed_mm_inputs([], [1], [2], "ids", "table", use_deepstack={1: True}) == "stock"
    assert used.calls[0][0] == ([], [1], [2], "ids", "table", None, None, None, {1: True})


def test_step_inside_of_sglangs_own_function_is_not_offered_again(managers: Any, used: Service) -> None:
    """SGLang's function calls a hooked one, as a model does that embeds in its own way."""
    used.result = None

    def original(*_: Any) -> Any:
        return managers.mm_utils.embed_mm_inputs([], [], [], None, None)

    assert hooks.around_embed(original, [], [], [], None, None) == "stock"
    assert len(used.calls) == 1
    managers.mm_utils.embed_mm_inputs([], [], [], None, None)
    assert len(used.calls) == 2


def test_error_of_sglangs_own_function_does_not_switch_the_service_off(used: Service) -> None:
    used.result = None

    def fails(*_: Any) -> None:
        raise RuntimeError("stock")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="stock"):
            hooks.around_embed(fails, [], [], [], None, None)
    assert len(used.calls) == 2


def test_cache_of_sglang_is_made_without_bytes(managers: Any) -> None:
    managers.mm_schedule.init_mm_embedding_cache(1000)
    assert managers.mm_schedule.embedding_cache.max_size == 0
    assert start_up.STOCK_CACHE.reserved_bytes == 1000


@pytest.mark.parametrize("is_idle", [True, False])
def test_flush_clears_the_caches_if_sglang_has_flushed(managers: Any, used: Service, is_idle: bool) -> None:
    scheduler = SimpleNamespace(is_idle=is_idle)
    assert managers.scheduler.Scheduler.flush_cache(scheduler) is is_idle
    assert used.calls == (["clear"] if is_idle else [])


def test_internal_state_gets_the_counts_and_keeps_the_rest(managers: Any) -> None:
    answer = managers.scheduler.Scheduler.get_internal_state(None, "request")
    assert answer.internal_state == {"world_size": 1, "vitcache": server_counts()}


def test_request_that_has_entered_the_queue_is_fetched(managers: Any, used: Service) -> None:
    scheduler = make_scheduler(managers)
    scheduler._add_request_to_queue("first")
    scheduler._add_request_to_queue("second", is_retracted=True)
    assert scheduler.waiting_queue == ["first", "second"]
    assert used.calls == [
        *(("entry", []), ("fetch", "first"), ("entered", ["first"])),
        *(("entry", ["first"]), ("fetch", "second"), ("entered", ["first", "second"])),
    ]


@pytest.mark.parametrize("is_decoding", [True, False])
def test_scheduler_that_has_nothing_to_run_pauses(managers: Any, used: Service, is_decoding: bool) -> None:
    scheduler = make_scheduler(managers)
    scheduler.waiting_queue.append("request")
    running = SimpleNamespace(is_empty=lambda: not is_decoding)
    assert scheduler.get_new_batch_prefill(running).batch_to_run == ["request"]
    assert used.calls == ["choice", "chosen"]
    assert scheduler.get_new_batch_prefill(running).batch_to_run is None
    assert used.calls[2:] == ["choice", "chosen", *([] if is_decoding else ["pause"])]


def test_choice_without_a_disk_is_that_of_sglang(managers: Any, used: Service) -> None:
    used.are_fetched = False
    scheduler = make_scheduler(managers)
    scheduler.waiting_queue.append("request")
    assert scheduler.get_new_batch_prefill(None).batch_to_run == ["request"]
    assert used.calls == []


def test_queue_before_the_service_is_imported_is_that_of_sglang(
    managers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, service.__name__)
    scheduler = make_scheduler(managers)
    scheduler._add_request_to_queue("request")
    assert scheduler.get_new_batch_prefill(None).batch_to_run == ["request"]
    assert service.__name__ not in sys.modules


@pytest.mark.parametrize("call", ["flush", "update", "failed update"])
def test_weights_lose_their_name_also_before_the_service_is_imported(
    managers: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A cache that is made later must not have the operator's name."""
    monkeypatch.delitem(sys.modules, service.__name__)
    managers.scheduler.Scheduler.flush_cache(SimpleNamespace(is_idle=False))
    assert LOADED.are_original
    updater = managers.updater.SchedulerWeightUpdaterManager()
    if call == "flush":
        managers.scheduler.Scheduler.flush_cache(SimpleNamespace(is_idle=True))
    elif call == "update":
        updater.update_weights_from_tensor("request")
    else:
        with pytest.raises(OSError, match="not found"):
            updater.update_weights_from_disk("fails")
    assert not LOADED.are_original


@pytest.mark.parametrize("answer", [None, SimpleNamespace(), SimpleNamespace(internal_state=None)], ids=repr)
def test_internal_state_of_another_form_is_returned_as_it_is(answer: Any) -> None:
    before = repr(answer)
    assert hooks.around_internal_state(lambda *_: answer, None, "request") is answer
    assert repr(answer) == before


@pytest.mark.parametrize("name", ["disk", "distributed", "tensor", "ipc"])
def test_weight_update_makes_the_rows_unreachable(managers: Any, used: Service, name: str) -> None:
    updater = managers.updater.SchedulerWeightUpdaterManager()
    assert getattr(updater, f"update_weights_from_{name}")("request") is True
    assert updater.end_weight_update("request") is True
    assert used.calls == ["advance_epoch", "advance_epoch"]


def test_failed_weight_update_makes_the_rows_unreachable_and_raises(managers: Any, used: Service) -> None:
    with pytest.raises(OSError, match="not found"):
        managers.updater.SchedulerWeightUpdaterManager().update_weights_from_disk("fails")
    assert used.calls == ["advance_epoch"]


@pytest.mark.parametrize("is_importing", [False, True])
def test_flush_and_update_before_the_first_step_import_no_service(
    managers: Any, monkeypatch: pytest.MonkeyPatch, is_importing: bool
) -> None:
    """`is_importing`: another thread is importing the module, which has no names yet."""
    name = service.__name__
    monkeypatch.delitem(sys.modules, name)
    if is_importing:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    managers.scheduler.Scheduler.flush_cache(SimpleNamespace(is_idle=True))
    managers.updater.SchedulerWeightUpdaterManager().update_weights_from_ipc(None)
    assert (name in sys.modules) is is_importing


@pytest.mark.parametrize(
    ("salt", "key", "tenant"),
    [(None, None, NO_TENANT), ("a", None, ("a", "")), ("", "b", ("", "b")), ("a", "b", ("a", "b"))],
)
def test_extended_request_remembers_its_tenant(
    managers: Any, salt: str | None, key: str | None, tenant: tuple[str, str]
) -> None:
    made = managers.schedule_batch.Req()
    made.cache_salt, made.extra_key = salt, key
    inputs = Inputs([])
    made.extend_image_inputs(inputs)
    assert made.multimodal_inputs is inputs
    assert tenant_of(inputs) == tenant


def test_request_without_items_or_names_is_extended(managers: Any) -> None:
    made = managers.schedule_batch.Req()
    made.extend_image_inputs(None)
    assert made.multimodal_inputs is None
    made.extend_image_inputs(inputs := Inputs([]))
    assert tenant_of(inputs) == NO_TENANT


def test_requests_of_different_tenants_do_not_share_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    for salt, key in [("a", None), ("b", None), (None, "a"), (None, None), ("a", None), (None, "a")]:
        inputs = Inputs([image(1, (2, 4))])
        hooks.around_extend_items(lambda _: None, request(inputs, salt, key))
        scene.step(Window(inputs, 0, 6))
    assert scene.model.num_encoded == 4


def test_cache_of_a_scheduler_without_the_check_of_hooks_is_refused(managers: Any) -> None:
    """Another plug-in that applied hooks to `Scheduler.__init__` first would prevent the check."""
    scheduler = managers.scheduler.Scheduler
    scheduler.__init__ = scheduler.__init__.__wrapped__
    before = managers.mm_schedule.embedding_cache
    with pytest.raises(RuntimeError, match=r"Scheduler\.__init__ does not call the hook of vitcache"):
        managers.mm_schedule.init_mm_embedding_cache(1000)
    assert managers.mm_schedule.embedding_cache is before
