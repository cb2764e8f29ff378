"""has_embedding_input: requests that vLLM would accept and that can end the engine."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vitcache.adapters.vllm.embedding_inputs import has_embedding_input

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
    ],
)
def test_has_embedding_input_finds_embeddings_and_metadata_alone(item: tuple[str, ...]) -> None:
    assert has_embedding_input(features(item))
    assert has_embedding_input(features(PIXELS, item))
