"""`VitCacheModelState` beside vLLM's own model state: equal rows in every step, without an engine."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from engine_runner.cases import PAGE_BYTES
from engine_runner.small_models import (
    NUM_IDS,
    DeepstackModel,
    Inner,
    Normalized,
    Sharded,
    Shifted,
    SmallModel,
)
from engine_runner.states import States, are_equal, run_traffic
from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner

from vitcache.placement.embed_call import EmbedCall

Make = Callable[..., States]


@pytest.mark.parametrize("lag", [0, 1], ids=["in step", "one step behind"])
@pytest.mark.parametrize(
    ("model", "inner"), [(DeepstackModel, Inner), (SmallModel, Normalized)], ids=["levels", "scale"]
)
def test_random_steps_give_the_rows_of_vllm(
    make_states: Make, lag: int, model: type[SmallModel], inner: type[Inner]
) -> None:
    states = make_states(lag=lag, model=model, inner=inner)
    run_traffic(states, 100)
    assert set(states.encoded.values()) == {1}
    assert states.counts["placements_table"] > 50
    assert states.counts["loads_placed"] > 10  # the launch reads them from pinned memory
    assert states.counts["loads_hidden"] + states.counts["loads_exposed"] > 3  # beside the encoder
    assert states.num_gathered > 100
    assert states.preempted
    states.store.cache.check_integrity()


def test_items_that_leave_both_tiers_are_encoded_again_with_equal_rows(make_states: Make) -> None:
    states = make_states(device_pages=16, host_pages=12)
    run_traffic(states, 60)
    assert max(states.encoded.values()) > 1
    states.store.cache.check_integrity()


def test_request_that_gets_further_items_is_planned_again(make_states: Make) -> None:
    states = make_states()
    for items in ([("a", 6)], [("b", 16), ("a", 6), ("c", 33)], [("c", 33)]):
        states.add("streamed", items)
        states.run()
    assert states.counts["placed_rows"] == sum((6, 16 + 6 + 33, 33))


def test_rows_of_a_batch_are_in_pages_before_the_next_but_one_is_encoded(
    make_states: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = make_states()
    encode, shown = states.ours.model.embed_multimodal, []

    def note(**kwargs: Any) -> Any:
        shown.append(list(states.store.on_device.shown))
        return encode(**kwargs)

    monkeypatch.setattr(states.ours.model, "embed_multimodal", note)
    states.add("first", [("a", 6), ("b", 6), ("c", 6)], modalities=("audio", "image", "video"))
    states.run()
    assert shown == [[], [], ["a"]]


def test_gather_before_a_placement_reads_the_loads_of_the_step(make_states: Make) -> None:
    gathered: list[torch.Tensor] = []

    def gather(batch: Any) -> Any:
        if batch.req_ids == ["last"]:
            gathered.extend(states.ours.gather_mm_embeddings(batch)[0])
        return batch

    states = make_states(device_pages=6, change_batch=gather)  # two items
    for name, item in (("first", "a"), ("second", "b"), ("third", "c"), ("last", "a")):
        states.add(name, [(item, 40)], num_tokens=1)
        states.run()
    assert are_equal(torch.cat(gathered), states.expected("a", 40))
    assert states.encoded[0] == 1


@pytest.mark.parametrize("inner", [Inner, Sharded], ids=["table", "two ranks"])
def test_levels_that_a_replayed_graph_leaves_do_not_reach_the_next_step(
    make_states: Make, inner: Any
) -> None:
    with torch.compiler.set_stance("force_eager"):
        states = make_states(inner=inner, replays_graph=lambda: states.num_steps == 1)
        run_two_prompts(states)
    assert states.num_steps == 2
    assert states.counts["placed_rows"] == 40 + 16 + 6


def run_two_prompts(states: States) -> None:
    states.add("first", [("a", 40)], num_tokens=1)
    states.run()
    states.add("second", [("b", 16), ("c", 6)], num_tokens=1)
    states.run()


def test_placeholders_outside_of_the_vocabulary_are_not_looked_up(make_states: Make) -> None:
    states = make_states(placeholder=NUM_IDS + 3)
    run_traffic(states, 20)
    assert states.counts["placements_table"] > 10


@pytest.mark.parametrize("inner", [Sharded, Shifted], ids=["two ranks", "unusual table"])
def test_text_rows_of_the_model_are_kept_and_items_placed(make_states: Make, inner: Any) -> None:
    with torch.compiler.set_stance("force_eager"):
        states = make_states(inner=inner)
        run_traffic(states, 30)
    assert states.counts["placements_model"] > 15
    assert not states.counts["placements_table"]


def test_encoder_with_lora_adapters_is_run_by_vllm(
    make_states: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock: list[int] = []
    execute = EncoderRunner.execute_mm_encoder

    def note(self: EncoderRunner, mm_kwargs: Any) -> Any:
        stock.append(id(self))
        return execute(self, mm_kwargs)

    def add_adapters(config: Any) -> None:
        config.lora_config = SimpleNamespace(enable_tower_connector_lora=True)

    monkeypatch.setattr(EncoderRunner, "execute_mm_encoder", note)
    states = make_states(change=add_adapters)
    run_traffic(states, 30)
    assert states.counts["stock_encodes"] == stock.count(id(states.ours.encoder_runner)) > 5
    assert set(states.encoded.values()) == {1}
    assert states.counts["placements_table"] > 15


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Let one call of a function raise: the first one has the number 1."""
    function, calls = getattr(owner, name), []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            raise OSError(name)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail)


def check_that_nothing_leaks(states: States) -> None:
    """Traffic after a failure has right rows, and after a reset only the pages of one entry are in use."""
    run_traffic(states, 30)
    states.reset()
    states.add("last", [("last", 4)], num_tokens=1)
    states.run()
    states.store.cache.check_integrity()
    page = states.store.cache.pages_for(4)
    assert states.store.cache.stats().leased_pages == page
    assert states.store.cache.stats().device_bytes == page * PAGE_BYTES["qwen3"]


@pytest.mark.parametrize("model", [DeepstackModel, SmallModel])
def test_encoder_that_raises_in_its_second_batch_leaks_no_page(
    make_states: Make, monkeypatch: pytest.MonkeyPatch, model: type[SmallModel]
) -> None:
    states = make_states(model=model)
    states.add("first", [("a", 6), ("b", 6), ("c", 6)], modalities=("image", "video"))
    fail_at(monkeypatch, states.ours.model, "embed_multimodal", 2)
    with pytest.raises(OSError, match="embed_multimodal"):
        states.step()
    states.retry()
    assert states.encoded.keys() == {0, 1, 2}
    check_that_nothing_leaks(states)


@pytest.mark.parametrize("is_load", [False, True], ids=["fresh rows", "rows of the host tier"])
def test_launch_that_raises_leaks_no_page(
    make_states: Make, monkeypatch: pytest.MonkeyPatch, is_load: bool
) -> None:
    states = make_states(device_pages=12)
    if is_load:
        for name in ("a", "b", "c", "d"):  # evicts the first ones
            states.add(name, [(name, 48)])
            states.run()
    states.add("first", [("a", 48)])
    fail_at(monkeypatch, EmbedCall, "run_placed", 1)
    with pytest.raises(OSError, match="run_placed"):
        states.step()
    states.retry()
    assert states.encoded[0] == (1 if is_load else 2)
    check_that_nothing_leaks(states)
