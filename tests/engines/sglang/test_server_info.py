"""SGLang's `/server_info` and `Engine.get_server_info` have the counts of vitcache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.io_struct import GetInternalStateReq, GetInternalStateReqOutput
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.utils.msgspec_utils import msgspec_to_builtins
from sglang_scene.language_model import LanguageModel
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import images
from sglang_scene.steps import run_step
from sglang_scene.tower import Tower

from vitcache.adapters.sglang import SglangStats

Result = Callable[[str], dict[str, Any]]


def internal_state() -> dict[str, Any]:
    """The answer of the released method, whose state has one field of SGLang."""
    answer = GetInternalStateReqOutput(internal_state={"world_size": 1})
    scheduler: Any = SimpleNamespace(
        internal_state=SimpleNamespace(get_internal_state=lambda request: answer)
    )
    return Scheduler.get_internal_state(scheduler, GetInternalStateReq()).internal_state


def test_internal_state_has_the_counts_of_each_tier() -> None:
    with plugged(4096, host_bytes=1 << 20), torch.no_grad():
        assert internal_state()["vitcache"]["caches"] == []
        for _ in range(2):
            run_step([images(3, rows=40).window()], LanguageModel(), Tower())
        state = internal_state()
        assert json.loads(json.dumps(state)) == state == msgspec_to_builtins(state)
        [cache] = state["vitcache"]["caches"]
        assert (state["world_size"], state["vitcache"]["steps"]) == (1, 2)
        assert cache["host_capacity_bytes"] > 0


def test_internal_state_of_sglang_alone_has_no_counts() -> None:
    with stock():
        assert internal_state() == {"world_size": 1}


@pytest.mark.engines("stock", "vitcache", "disabled")
def test_engine_shows_its_counts_before_the_first_step_and_after_the_last(result: Result) -> None:
    assert result("stock")["infos"] == [None, None]
    before, after = result("vitcache")["infos"]
    counts = result("vitcache")["counts"]["vitcache"]
    assert [(cache["entries"], cache["misses"]) for cache in before["caches"]] == [(0, 0)]
    assert before["caches"][0]["device_capacity_bytes"] == after["caches"][0]["device_capacity_bytes"] > 0
    assert before["steps"] == before["encodes"] == 0
    assert after["steps"] > 0
    for name in {field.name for field in fields(SglangStats)} - {"caches"}:
        assert after[name] == counts[name]
    before, after = result("disabled")["infos"]
    assert [before["is_disabled"], before["originals"], before["caches"]] == [True, {}, []]
    assert after["originals"] == result("disabled")["counts"]["vitcache"]["originals"]
