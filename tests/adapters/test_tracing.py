"""Tracing of attached models and of chunked prefill: the ranges of a pipeline, by the same names."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from attached import QWEN3, logits
from prefill_scene import Scene
from trace_ranges import Ranges, counts, tracing_on  # noqa: F401

from vitcache import attach

pytestmark = pytest.mark.transformers


@pytest.mark.usefixtures("tracing_on")
def test_attached_model_opens_one_range_per_keys_encode_and_launch() -> None:
    model = QWEN3.model()
    prompt = QWEN3.prompt(model, 0, 1)
    with attach(model):
        misses = Ranges(lambda: logits(model, prompt))
        assert misses.counts == counts(key=1, encode=2, place=1)
        assert misses.nested == set()
        assert Ranges(lambda: logits(model, prompt)).counts == counts(key=1, place=1)


@pytest.mark.usefixtures("tracing_on")
def test_attached_model_without_placement_opens_a_range_where_features_are_assembled() -> None:
    model = QWEN3.model()
    prompt = QWEN3.prompt(model, 0)
    with attach(model, placement="off"):
        assert Ranges(lambda: logits(model, prompt)).counts == counts(key=1, encode=1, place=1)
        assert Ranges(lambda: logits(model, prompt)).counts == counts(key=1, place=1)


@pytest.mark.usefixtures("tracing_on")
def test_chunked_prefill_opens_the_ranges_of_its_pipeline() -> None:
    scene = Scene("qwen2_5_vl")
    prompt, items = scene.prompt(("image", 0))
    driver = scene.chat(chunk_tokens=1000)
    ranges = Ranges(lambda: driver.prefill(prompt["input_ids"], items))
    assert ranges.counts["place"] == ranges.counts["encode"] == ranges.counts["copy"] == 1
    assert ranges.counts["key"] > 0
