"""The encoder of `vision_pipeline`: images and videos in one batch get the rows of the stock methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import make_cache
from torch import Tensor, nn

pytest.importorskip("transformers")

from attached import Tower
from tiny_models import GRID_FAMILIES, Call, GridFamily, stock_method

from vitcache import Chunk, Item
from vitcache.adapters.model_outputs import image_rows
from vitcache.adapters.transformers import image_encoder, image_items, video_items, vision_pipeline

pytestmark = pytest.mark.transformers

each_grid_family = pytest.mark.parametrize("name", GRID_FAMILIES)
MEDIA = ("video", 1), ("image", 0), ("video", 0), ("image", 1)


def items_of(model: nn.Module, prompt: Call) -> list[Item]:
    """The items of a prompt with images and videos, in prompt order."""
    ids = prompt["input_ids"]
    images = image_items(model, ids, prompt["pixel_values"], prompt["image_grid_thw"])
    seconds = prompt.get("second_per_grid_ts")
    grids = prompt["video_grid_thw"]
    videos = video_items(model, ids, prompt["pixel_values_videos"], grids, second_per_grid_ts=seconds)
    return sorted([*images, *videos], key=lambda item: item.spans[0].start)


@torch.no_grad()
def stock_rows_of(model: nn.Module, item: Item) -> Tensor:
    """The rows of one item, encoded alone by its stock method."""
    options = item.encoder_kwargs
    modality = "image" if "grid_thw" in options else "video"
    grid = torch.tensor([options.get("grid_thw") or options["video_grid_thw"]])
    return image_rows(stock_method(model, modality)(item.feature, grid))


def scene(name: str) -> tuple[GridFamily, nn.Module, Call, list[Item]]:
    family = GRID_FAMILIES[name]
    model, prompt = family.model(), family.mixed_prompt(*MEDIA)
    return family, model, prompt, items_of(model, prompt)


@each_grid_family
def test_item_encoded_alone_has_the_bits_of_its_stock_method(name: str) -> None:
    family, model, _, items = scene(name)
    encode = image_encoder(model)
    for item in items:
        rows = encode([item.feature], [item])
        assert rows.shape == (item.num_rows, family.row_width)
        assert torch.equal(rows, stock_rows_of(model, item))
        assert not rows.requires_grad


@each_grid_family
def test_mixed_batch_returns_rows_in_item_order_from_one_call_per_modality(name: str) -> None:
    family, model, _, items = scene(name)
    tower = Tower(family, model)
    expected = torch.cat([stock_rows_of(model, item) for item in items])
    for batch, calls in ((items, 2), (items[::2], 1), (items[1::2], 1), (items[::-1], 2)):
        tower.take()
        rows = image_encoder(model)([item.feature for item in batch], batch)
        assert tower.take() == calls
        wanted = torch.cat([stock_rows_of(model, item) for item in batch])
        torch.testing.assert_close(rows, wanted, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("disabled", [False, True], ids=["cached", "disabled"])
@each_grid_family
def test_vision_pipeline_places_images_and_videos_bit_for_bit(
    name: str, disabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each item is encoded alone. Two chunks, the second one begins inside of a video."""
    monkeypatch.setenv("VITCACHE_DISABLE", "1" if disabled else "0")
    family, model, prompt, items = scene(name)
    pipeline = vision_pipeline(model, make_cache(64, width=family.row_width), max_rows_per_encode=1)
    ids, weight = prompt["input_ids"][0], model.get_input_embeddings().weight
    hidden = weight.shape[1]
    levels = family.row_width // hidden - 1
    wanted = torch.zeros(len(ids), family.row_width)
    is_text = prompt["mm_token_type_ids"][0] == 0
    wanted[is_text, :hidden] = weight[ids[is_text]].detach()
    for item in items:
        rows = stock_rows_of(model, item)
        for span in item.spans:
            wanted[span.start : span.stop] = rows[span.source_start : span.source_start + span.length]
    cut = items[2].spans[-1].start + 1
    tower = Tower(family, model)
    for start, stop in ((0, cut), (cut, len(ids)), (0, len(ids))):
        deepstack = torch.empty(levels, stop - start, hidden) if levels else None
        chunk = Chunk(items, start, stop - start)
        result = pipeline.embed([chunk], ids[start:stop], weight, deepstack=deepstack)
        assert not result.errors
        found = [result.inputs_embeds, *(deepstack if levels else [])]
        assert torch.equal(torch.cat(list(found), dim=-1), wanted[start:stop])
    assert len(pipeline.cache) == (0 if disabled else 4)
    assert tower.take() == (3 + 2 + 4 if disabled else 4)


def test_same_patches_and_grid_as_image_and_as_video_are_two_entries() -> None:
    model = GRID_FAMILIES["qwen3_vl"].model()
    pipeline = vision_pipeline(model, make_cache(64, width=GRID_FAMILIES["qwen3_vl"].row_width))
    patches = torch.randn(16, 96)
    image, video = (
        Item(patches, None, num_rows=4, grid_thw=[1, 4, 4]),
        Item(patches, None, num_rows=4, video_grid_thw=[1, 4, 4]),
    )
    assert pipeline.key(image) != pipeline.key(video)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "neither"),
        ({"image_grid_thw": [1, 4, 4]}, "neither"),
        ({"grid_thw": [1, 4, 4], "video_grid_thw": [1, 4, 4]}, "grid_thw and video_grid_thw"),
    ],
)
def test_item_with_neither_or_both_grids_raises_and_is_named(options: Call, found: str) -> None:
    _, model, prompt, items = scene("glm4v")
    wrong = Item(torch.zeros(16, 96), items[0].spans, num_rows=8, **options)
    message = rf"item 1 must have either grid_thw \(an image\) or video_grid_thw \(a video\), got {found}$"
    with pytest.raises(ValueError, match=message):
        image_encoder(model)([items[1].feature, wrong.feature], [items[1], wrong])
    # A step reports the item, and encodes the rest.
    pipeline = vision_pipeline(model, make_cache(64, width=32))
    ids, batch = prompt["input_ids"][0], [wrong, *items[1:]]
    result = pipeline.embed([Chunk(batch, 0, len(ids))], ids, model.get_input_embeddings().weight)
    [error] = result.errors
    assert (error.item, error.expected, error.found) == (0, 8, None)
    assert "must have either grid_thw" in str(error.cause)
    assert len(pipeline.cache) == 3


def test_num_rows_that_disagree_with_the_grid_fail_for_that_item_only() -> None:
    """Two wrong numbers with the right sum would exchange rows between the items."""
    _, model, prompt, items = scene("qwen2_5_vl")
    patches = [item.feature for item in items]
    more = Item(patches[1], items[1].spans, num_rows=5, grid_thw=[1, 4, 4])
    fewer = Item(patches[3], items[3].spans[0]._replace(length=5), num_rows=5, grid_thw=[1, 4, 6])
    with pytest.raises(ValueError, match=r"item 0 has 5 rows, expected 4, as its grid_thw is \[1, 4, 4\]"):
        image_encoder(model)([patches[1], patches[3]], [more, fewer])
    pipeline = vision_pipeline(model, make_cache(64, width=32))
    ids, batch = prompt["input_ids"][0], [items[0], more, items[2], fewer]
    result = pipeline.embed([Chunk(batch, 0, len(ids))], ids, model.get_input_embeddings().weight)
    assert [(error.item, error.expected, error.found) for error in result.errors] == [(1, 5, 4), (3, 5, 6)]
    assert len(pipeline.cache) == 2


def test_stock_method_with_a_wrong_number_of_rows_fails_a_mixed_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, model, _, items = scene("qwen2_vl")
    stock: Any = model.base_model.get_video_features

    def wrong(*args: Any, **options: Any) -> Any:
        output = stock(*args, **options)
        output.pooler_output = output.pooler_output[:1]
        return output

    monkeypatch.setattr(model.base_model, "get_video_features", wrong)
    with pytest.raises(ValueError, match="get_video_features must return 14 rows for these items, got 6"):
        image_encoder(model)([item.feature for item in items], items)
