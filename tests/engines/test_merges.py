"""Steps whose rows vLLM's merge writes: rows, counter and log line of each reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("vllm")

import numpy as np
import torch
from engine_runner.small_models import NUM_IDS, Normalized, Sharded, Shifted, SmallModel
from engine_runner.states import States, run_traffic
from vllm.v1.worker.gpu import buffer_utils
from vllm.v1.worker.gpu.model_states import default
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.pcp_manager import PCPBatchMetadata

from vitcache.adapters.vllm.counts import MERGE_REASONS
from vitcache.adapters.vllm.device_rows import DeviceRows
from vitcache.adapters.vllm.model_state import VitCacheModelState
from vitcache.adapters.vllm.plugin import logger

Make = Callable[..., States]


class Realtime(SmallModel):
    supports_realtime = True


class Pruner:
    """Keeps all rows."""

    def recompute(self, rows: list[Any], *_: Any) -> list[Any]:
        return [each.clone() for each in rows]

    def strip(self, rows: list[Any]) -> list[Any]:
        return rows


def share_prompts(batch: Any) -> Any:
    """The batch of one of several ranks that share each prompt: it has two parts of each request."""
    lengths = batch.num_scheduled_tokens
    parts = np.stack([lengths - lengths // 2, lengths // 2], axis=1)
    firsts = np.stack([batch.num_computed_tokens_np, batch.num_computed_tokens_np + parts[:, 0]], axis=1)
    has_tokens = parts.ravel() > 0
    parts, firsts = parts.ravel()[has_tokens], firsts.ravel()[has_tokens]
    return replace(
        batch,
        req_ids=np.repeat(batch.req_ids, 2)[has_tokens].tolist(),
        num_scheduled_tokens=parts,
        num_computed_tokens_np=firsts,
        prefill_len_np=np.repeat(batch.prefill_len_np, 2)[has_tokens],
        query_start_loc_np=np.concatenate([[0], np.cumsum(parts)]),
        pcp=PCPBatchMetadata(batch.num_tokens, lengths, lengths),
    )


def accept_embeds(config: Any) -> None:
    config.model_config.enable_prompt_embeds = True


def share_context(config: Any) -> None:
    config.parallel_config.prefill_context_parallel_size = 2


OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"is_placed": False},
    "model_runner": {"model_runner": 1},
    "option": {"place_rows": False},
    "pruning": {"model": SmallModel},
    "prompt_embeds": {"change": accept_embeds},
    "realtime": {"model": Realtime, "inner": Normalized},
    "context_parallel": {"change": share_context, "change_batch": share_prompts},
    "vocabulary": {"inner": Shifted, "placeholder": NUM_IDS + 3},
}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that vitcache logs. The first engine's options replace all handlers, but no filter."""
    found: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        found.append(record.getMessage())
        return True

    monkeypatch.setattr(logger, "filters", [note])
    return found


@pytest.mark.parametrize("reason", MERGE_REASONS)
def test_merge_gives_the_rows_of_vllm_and_is_counted_and_logged_once(
    make_states: Make, monkeypatch: pytest.MonkeyPatch, lines: list[str], reason: str
) -> None:
    if reason == "pruning":
        monkeypatch.setattr(default, "maybe_create_mm_pruner", lambda *_: Pruner())
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)  # of prompt embeddings
    states = make_states(**OPTIONS[reason])
    run_traffic(states, 40, is_masked=reason != "model_runner")
    assert states.counts[f"merges_{reason}"] > 15
    assert not [name for name in states.counts if name.startswith("placements")]
    assert states.counts["loads_hidden"] + states.counts["loads_exposed"] > 5
    assert len([line for line in lines if f"{MERGE_REASONS[reason]} ({reason})" in line]) == 1, lines
    if states.config.use_v2_model_runner:
        is_ours = reason not in ("model", "option")
        assert type(states.ours) is (VitCacheModelState if is_ours else DefaultModelState)
        assert set(states.encoded.values()) == {1}


@pytest.mark.parametrize("reason", ["pruning", "context_parallel"])
def test_merge_waits_for_loads_behind_the_encoder_and_before_it_reads_rows(
    make_states: Make, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "pruning":
        monkeypatch.setattr(default, "maybe_create_mm_pruner", lambda *_: Pruner())
    states = make_states(device_pages=6, **OPTIONS[reason])  # two items
    events: list[str] = []
    record(monkeypatch, states.ours.model, "embed_multimodal", events)
    record(monkeypatch, DeviceRows, "use", events)
    record(monkeypatch, states.ours.encoder_runner, "gather_mm_embeddings", events)
    for names in (["a", "b"], ["c", "d"], ["a", "e"]):
        events.clear()
        states.add(" ".join(names), [(name, 40) for name in names], num_tokens=1)
        states.run()
    # The pages of "e" are committed, then the stream waits for the load of "a".
    assert events[:4] == ["embed_multimodal", "use ['e']", "use ['a']", "gather_mm_embeddings"]


def record(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, events: list[str]) -> None:
    """Append the name of a function to `events` when it is called, and the identifiers that it gets."""
    function = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        events.append(f"use {args[1]}" if name == "use" else name)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def test_sharded_table_and_ids_outside_of_the_vocabulary_are_placed(make_states: Make) -> None:
    with torch.compiler.set_stance("force_eager"):
        states = make_states(inner=Sharded, placeholder=NUM_IDS + 3)
        run_traffic(states, 20)
    assert states.counts["placements_model"] > 10
    assert "merges_vocabulary" not in states.counts
