"""Requests with embeddings as inputs are refused, because they can stop the engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from vllm_scene.requests import Request, make_request

from vitcache.adapters.vllm.embedding_inputs import EmbeddingGate, has_embedding_input

PIXELS = ("pixel_values", "image_grid_thw")


def features(*items: tuple[str, ...] | None) -> list[SimpleNamespace]:
    return [SimpleNamespace(data=names and dict.fromkeys(names)) for names in items]


@pytest.mark.parametrize(
    "items",
    [
        (),
        (None,),
        ((),),
        (PIXELS,),
        (("pixel_values_videos", "video_grid_thw", "timestamps"), PIXELS),
        (("input_audio_features", "feature_attention_mask", "audio_feature_lengths"),),
        (("input_image_embeds", "image_attention_mask", "image_sizes", "num_img_tokens"),),  # pixels
        (("input_audio_embeds",),),  # of Phi-4-multimodal: features
        (("embedding",),),  # prompt_embeds
        (("address", "monotonic_id"),),  # the item is in the shared memory of the processor cache
    ],
)
def test_has_embedding_input_is_false_for_media(items: tuple[tuple[str, ...] | None, ...]) -> None:
    assert not has_embedding_input(features(*items))


@pytest.mark.parametrize(
    "item",
    [
        ("image_embeds", "image_grid_thw"),
        ("image_embeds",),
        ("audio_embeds", "audio_num_tokens"),
        ("image_grid_thw",),
        ("video_grid_thw", "timestamps"),
        ("audio_feature_lengths",),
        ("audio_feature_lengths", "feature_attention_mask"),
        ("video_grid_thw", "second_per_grid_ts", "use_audio_in_video"),
        ("image_sizes", "tgt_sizes"),
        ("image_grid_thw", "patch_positions"),
    ],
)
def test_has_embedding_input_finds_embeddings_and_metadata_alone(item: tuple[str, ...]) -> None:
    assert has_embedding_input(features(item))
    assert has_embedding_input(features(PIXELS, item))


def request(*items: tuple[str, ...]) -> Request:
    made = make_request("r", [("a", 4)])
    made.mm_features = features(*items)  # type: ignore[assignment]
    return made


def test_gate_refuses_a_request_with_embeddings_until_it_is_finished() -> None:
    gate = EmbeddingGate(False)
    bad = request(("image_embeds",))
    assert not gate.admits(bad)
    assert not gate.admits(bad)
    assert gate.take_refused() == {"r"}
    assert gate.take_refused() == set()
    gate.finish(bad)
    assert gate.admits(request(PIXELS))


def test_gate_checks_an_item_once() -> None:
    gate = EmbeddingGate(False)
    good = request(PIXELS)
    assert gate.admits(good)
    good.mm_features = [None]  # type: ignore[list-item]
    assert gate.admits(good)


def test_gate_checks_items_that_a_streaming_session_gets_later() -> None:
    gate = EmbeddingGate(False)
    session = request(PIXELS)
    assert gate.admits(session)
    session.mm_features += features(PIXELS)  # type: ignore[arg-type]
    assert gate.admits(session)
    session.mm_features += features(("image_embeds",))  # type: ignore[arg-type]
    assert not gate.admits(session)
    assert gate.take_refused() == {"r"}


def test_gate_keeps_nothing_about_finished_requests() -> None:
    gate = EmbeddingGate(False)
    good = request(PIXELS)
    assert gate.admits(good)
    gate.finish(good)
    assert not gate._checked


def test_gate_that_accepts_embeddings_admits_all_requests() -> None:
    gate = EmbeddingGate(True)
    assert gate.admits(request(("image_embeds",)))
    assert gate.take_refused() == set()
