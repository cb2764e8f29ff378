"""The marks of an ended request, in released classes of SGLang that the engines of the tests do not run."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.io_struct import SessionParams
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH, Req
from sglang.srt.managers.scheduler_components import batch_result_processor
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.session.session_controller import Session
from sglang_scene.prompts import images

from vitcache.adapters.sglang import hooks
from vitcache.adapters.sglang.failed_requests import end_requests


def make_request(name: str) -> Req:
    sampling_params = SamplingParams(max_new_tokens=1)
    sampling_params.normalize(None)
    request = Req(name, "", array("q", range(8)), sampling_params)
    request.multimodal_inputs = images(1).inputs
    return request


def nothing(*_: Any, **__: Any) -> None: ...


def test_embedding_model_answers_all_requests_but_the_ended_one(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        batch_result_processor,
        "release_kv_cache",
        lambda request, _, checkpoint: released.append((request.rid, checkpoint)),
    )
    bad, good = requests = [make_request("bad"), make_request("good")]
    batch = SimpleNamespace(
        reqs=requests, is_dllm=lambda: False, decoding_reqs=None, return_logprob=False, prefill_stats=None
    )
    hooks.around_run_batch(
        lambda *_: end_requests(bad.multimodal_inputs, "text"), SimpleNamespace(chunked_req=None), batch
    )
    processor = SimpleNamespace(
        is_generation=False,
        token_to_kv_pool_allocator=SimpleNamespace(free_group_begin=nothing, free_group_end=nothing),
        tree_cache=None,
        output_streamer=SimpleNamespace(stream_output=nothing),
        _convert_embeddings=lambda *, result: result.embeddings.tolist(),
    )
    result = SimpleNamespace(
        copy_done=None, embeddings=torch.ones(2, 3), pooled_hidden_states=None, can_run_cuda_graph=False
    )
    batch_result_processor.SchedulerBatchResultProcessor.process_batch_result_prefill(
        processor, batch, result
    )
    assert isinstance(bad.finished_reason, FINISH_ABORT)
    assert bad.finished_reason.to_json() == {
        "type": "abort",
        "message": "text",
        "status_code": 500,
        "err_type": "InternalServerError",
    }
    assert good.embedding == [1.0] * 3
    assert not isinstance(good.finished_reason, FINISH_ABORT)
    assert released == [("bad", False), ("good", True)]


class Received(SimpleNamespace):
    """As a `TokenizedGenerateReqInput`. Its other fields are not set."""

    def __getattr__(self, _: str) -> None: ...


def turn(session: Session, name: str, **parameters: Any) -> Req:
    """The request of a turn, which has ended."""
    sampling_params = SamplingParams(max_new_tokens=1)
    sampling_params.normalize(None)
    received = Received(
        rid=name,
        input_ids=array("q", range(4)),
        sampling_params=sampling_params,
        session_params=SessionParams(**parameters),
        stream=False,
        return_hidden_states=False,
    )
    made = session.create_req(received, None, 256)
    made.finished_reason = made.to_finish or FINISH_LENGTH(1)
    return made


def end_turn(request: Req) -> None:
    request.multimodal_inputs = images(1).inputs
    batch = SimpleNamespace(reqs=[request], is_dllm=lambda: False, decoding_reqs=None)
    scheduler = SimpleNamespace(chunked_req=None)
    hooks.around_run_batch(lambda *_: end_requests(request.multimodal_inputs, "text"), scheduler, batch)


def test_turn_that_continues_an_ended_one_has_its_items() -> None:
    """Their placeholders are in its prompt: without the items, SGLang would look up ids beyond its table."""
    session = Session(100, "session")
    turn(session, "first")
    bad = turn(session, "bad", rid="first")
    end_turn(bad)
    bad.release_mm_inputs_on_abort()  # as SGLang when it processes the result
    inputs = turn(session, "next", rid="bad").multimodal_inputs
    assert inputs is bad.multimodal_inputs
    assert [item.feature is None for item in inputs.mm_items] == [False]


def test_ended_turn_of_a_streaming_session_is_left_out_of_the_next_one() -> None:
    session = Session(100, "session", streaming=True)
    session.finish_req(turn(session, "first"))
    bad = turn(session, "bad")
    end_turn(bad)
    bad.release_mm_inputs_on_abort()
    session.abort_req()
    assert bad.multimodal_inputs is None
    assert turn(session, "next").multimodal_inputs is None
