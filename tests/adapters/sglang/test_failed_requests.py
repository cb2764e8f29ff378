"""`end_requests`: which requests of a running batch are marked, and which marks they get."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vitcache.adapters.sglang import hooks
from vitcache.adapters.sglang.engine_modules import RUNTIME_CONTEXT, SCHEDULE_BATCH
from vitcache.adapters.sglang.failed_requests import RUN, end_requests


class Reason:
    """As `FINISH_ABORT`."""

    def __init__(self, message: str, status_code: Any, err_type: str) -> None:
        self.found = (message, int(status_code), err_type)


REASON = ("text", 500, "InternalServerError")


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, SCHEDULE_BATCH, SimpleNamespace(FINISH_ABORT=Reason))
    monkeypatch.delitem(sys.modules, RUNTIME_CONTEXT, raising=False)


def request(inputs: Any, **values: Any) -> SimpleNamespace:
    """As a `Req` that has no mark."""
    marks = {"skip_radix_cache_insert": False, "discard_output_reason": None, "to_finish": None}
    return SimpleNamespace(
        **{"multimodal_inputs": inputs, "beam_group": None, "session": None, **marks, **values}
    )


def marks(found: Any) -> tuple[Any, ...]:
    """The marks of a request."""
    reasons = (found.discard_output_reason, found.to_finish)
    return found.skip_radix_cache_insert, *(reason and reason.found for reason in reasons)


UNMARKED = (False, None, None)


def end(
    inputs: Any, *requests: Any, chunked: Any = None, is_dllm: bool = False, decoding: Any = None
) -> tuple[int, Any]:
    """Call `end_requests` in a run of a batch. Returns its result and the request of the scheduler's mark."""
    scheduler = SimpleNamespace(chunked_req=chunked, _pending_chunked_abort_req=None)
    batch = SimpleNamespace(reqs=list(requests), is_dllm=lambda: is_dllm, decoding_reqs=decoding)
    num_ended = hooks.around_run_batch(lambda *_: end_requests(inputs, "text"), scheduler, batch)
    return num_ended, scheduler._pending_chunked_abort_req


def test_request_of_the_items_is_marked_and_no_other_one() -> None:
    inputs = object()
    bad, good, text = request(inputs), request(object()), request(None)
    assert end(inputs, good, bad, text) == (1, None)
    assert marks(bad) == (True, REASON, None)
    assert [marks(each) for each in (good, text)] == [UNMARKED, UNMARKED]


def test_request_in_a_chunk_that_is_not_its_last_one_is_not_continued() -> None:
    inputs = object()
    bad = request(inputs)
    assert end(inputs, bad, chunked=bad) == (1, bad)
    assert marks(bad) == (True, REASON, None)


def test_other_request_in_chunks_is_continued() -> None:
    inputs = object()
    bad, chunked = request(inputs), request(object())
    assert end(inputs, bad, chunked, chunked=chunked) == (1, None)
    assert marks(chunked) == UNMARKED


def test_beam_group_is_ended_as_by_a_client_but_in_a_middle_chunk() -> None:
    inputs = object()
    last, middle = (request(inputs, beam_group=object()) for _ in range(2))
    assert end(inputs, last) == (1, None)
    assert marks(last) == (True, None, REASON)
    assert end(inputs, middle, chunked=middle) == (1, middle)
    assert marks(middle) == (True, REASON, None)


def test_requests_that_share_their_items_are_all_ended() -> None:
    inputs = object()
    both = [request(inputs), request(inputs)]
    assert end(inputs, *both) == (2, None)
    assert [marks(each) for each in both] == [(True, REASON, None)] * 2


def test_request_that_decodes_is_not_ended_for_the_items_that_it_shares() -> None:
    inputs = object()
    bad, decodes = request(inputs), request(inputs)
    assert end(inputs, bad, decodes, decoding=[decodes]) == (1, None)
    assert [marks(each) for each in (bad, decodes)] == [(True, REASON, None), UNMARKED]


def test_batch_of_a_diffusion_model_ends_no_request() -> None:
    found = request(object())
    assert end(found.multimodal_inputs, found, is_dllm=True) == (0, None)
    assert marks(found) == UNMARKED


def test_batch_without_the_request_ends_none_even_if_items_are_equal() -> None:
    found = request([])
    assert end([], found) == (0, None)
    assert marks(found) == UNMARKED


@pytest.mark.parametrize(("num_stages", "num_ended"), [(1, 1), (2, 0)])
def test_requests_of_several_pipeline_stages_are_not_ended(
    monkeypatch: pytest.MonkeyPatch, num_stages: int, num_ended: int
) -> None:
    context = SimpleNamespace(get_parallel=lambda: SimpleNamespace(pp_size=num_stages))
    monkeypatch.setitem(sys.modules, RUNTIME_CONTEXT, context)
    found = request(object())
    assert end(found.multimodal_inputs, found) == (num_ended, None)
    assert (marks(found) == UNMARKED) is (num_ended == 0)


def test_requests_of_a_process_without_a_configuration_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parallel:
        @property
        def pp_size(self) -> int:
            raise ValueError("config namespace 'parallel' not published")

    monkeypatch.setitem(sys.modules, RUNTIME_CONTEXT, SimpleNamespace(get_parallel=Parallel))
    found = request(object())
    assert end(found.multimodal_inputs, found) == (1, None)


def test_request_of_a_version_without_the_mark_is_not_ended() -> None:
    found = request(object())
    del found.discard_output_reason
    assert end(found.multimodal_inputs, found) == (0, None)
    assert not found.skip_radix_cache_insert


def test_outside_of_a_run_no_request_is_ended() -> None:
    assert end_requests(object(), "text") == 0


@pytest.mark.parametrize("fails", [False, True])
def test_run_ends_with_its_batch_and_an_inner_run_restores_the_outer_one(fails: bool) -> None:
    seen: list[Any] = []

    def inner(scheduler: Any, batch: Any) -> None:
        seen.append(RUN.get())
        if fails:
            raise OSError("inner")

    def outer(scheduler: Any, batch: Any, proxies: Any) -> str:
        try:
            hooks.around_run_batch(inner, scheduler, batch="inner")
        except OSError:
            seen.append("raised")
        seen.append(RUN.get())
        return f"result of {batch} and {proxies}"

    assert hooks.around_run_batch(outer, "s", "outer", proxies="p") == "result of outer and p"
    assert seen == [("s", "inner"), *(["raised"] if fails else []), ("s", "outer")]
    assert RUN.get() is None


def test_run_without_a_failure_costs_one_frame() -> None:
    frames: list[str] = []

    def original(scheduler: Any, batch: Any) -> None: ...

    sys.setprofile(lambda frame, event, _: frames.append(frame.f_code.co_name) if event == "call" else None)
    try:
        hooks.around_run_batch(original, "scheduler", "batch")
    finally:
        sys.setprofile(None)
    assert frames == ["around_run_batch", "original"]
