"""`ChunkedPrefill` with images and videos of every family gives the logits of the stock forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from family_results import note
from prefill_scene import MEDIA, Scene, assert_close
from tiny_grids import GRID_FAMILIES

from vitcache import Item, Span
from vitcache.adapters.transformers import ChunkedPrefill

pytestmark = pytest.mark.transformers

each_family = pytest.mark.parametrize("name", GRID_FAMILIES)
# The families with linear attention, whose KV cache cannot remove tokens.
LINEAR = ["qwen3_5", "qwen3_5_moe", "qwen4_exp"]


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 5, 8, 13, 64])
@each_family
def test_prefill_of_images_and_videos_gives_the_stock_logits(name: str, chunk_tokens: int) -> None:
    scene = Scene(name)
    chat = scene.chat(chunk_tokens)
    prompt, items = scene.prompt(*MEDIA)
    scene.assert_prefills(chat, prompt, items, reused=0)
    assert len(scene.pipeline.cache) == len(MEDIA)
    note(model_type=scene.model.config.model_type, chunked_prefill=True)


@each_family
def test_chat_with_a_new_image_or_video_per_turn_runs_new_tokens_only(name: str) -> None:
    scene = Scene(name)
    chat = scene.chat(6)
    cached = 0
    for turn in range(1, len(MEDIA) + 1):
        prompt, items = scene.prompt(*MEDIA[:turn])
        # The last token of the turn before is not in this prompt. Linear attention cannot remove it.
        reused = 0 if name in LINEAR else max(cached - 1, 0)
        scene.assert_prefills(chat, prompt, items, reused=reused)
        cached = prompt["input_ids"].shape[1]
        assert len(scene.pipeline.cache) == turn


@each_family
def test_decoded_tokens_and_a_longer_prompt_run_new_tokens_only(name: str) -> None:
    scene = Scene(name)
    chat = scene.chat()
    prompt, items = scene.prompt(*MEDIA[:2])
    scene.assert_prefills(chat, prompt, items, reused=0)
    scene.tower.take()
    for token in (7, 8, 9):
        num_tokens = prompt["input_ids"].shape[1]
        prompt = scene.longer(prompt, token)
        scene.assert_prefills(chat, prompt, items, reused=num_tokens)
    assert scene.tower.take() == 0


@each_family
def test_prompt_that_differs_inside_is_run_from_there_or_from_the_beginning(name: str) -> None:
    scene = Scene(name)
    chat = scene.chat()
    prompt, items = scene.prompt(*MEDIA[:3])
    scene.assert_prefills(chat, prompt, items, reused=0)
    edited = {**prompt, "input_ids": prompt["input_ids"].clone()}
    edited["input_ids"][0, -3] = 44
    num_tokens = prompt["input_ids"].shape[1]
    scene.assert_prefills(chat, edited, items, reused=0 if name in LINEAR else num_tokens - 3)
    # Another video at the same token ids: clips 0 and 3 have one grid.
    other, items = scene.prompt(*MEDIA[:2], ("video", 3))
    other["input_ids"][0, -3] = 44
    first = min(span.start for span in items[-1].spans)
    scene.assert_prefills(chat, other, items, reused=0 if name in LINEAR else first)


@each_family
def test_failed_item_of_any_family_leaves_a_chat_that_can_go_on(name: str) -> None:
    scene = Scene(name)
    chat = scene.chat(5)
    prompt, items = scene.prompt(("image", 0), ("video", 1))

    def fail() -> Any:
        raise OSError("the file is missing")

    video = items[1]
    broken = Item(fail, video.spans, key=bytes(32), **video.encoder_kwargs)
    with pytest.raises(RuntimeError, match=r"item 1: expected .* the file is missing"):
        chat.prefill(prompt["input_ids"], [items[0], broken])
    kept = chat.num_cached
    assert kept == chat.kv.get_seq_length() > 0
    scene.assert_prefills(chat, prompt, items, reused=kept)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_kv_crop_is_called_only_with_tokens_to_remove(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(name)
    chat = scene.chat()
    removed: list[int] = []
    prompt, items = scene.prompt(("image", 0))
    chat.prefill(prompt["input_ids"], items)
    crop = chat.kv.crop
    monkeypatch.setattr(chat.kv, "crop", lambda count: removed.append(count) or crop(count))
    longer = scene.longer(prompt, 7, 8)
    chat.prefill(longer["input_ids"], items)
    assert removed == []
    chat.prefill(longer["input_ids"], items)  # all tokens are cached: the last one is run again
    assert removed == [-1]


def test_kv_crop_that_raises_halfway_starts_the_conversation_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene("qwen3_vl")
    chat = scene.chat()
    prompt, items = scene.prompt(("image", 0), ("video", 1))
    scene.assert_prefills(chat, prompt, items, reused=0)

    def fail(count: int) -> None:
        raise RuntimeError("this layer cannot remove tokens")

    monkeypatch.setattr(chat.kv.layers[1], "crop", fail)
    edited = {**prompt, "input_ids": prompt["input_ids"].clone()}
    edited["input_ids"][0, -2] = 44
    scene.assert_prefills(chat, edited, items, reused=0)


def test_interrupt_inside_kv_crop_resets_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene("qwen3_vl")
    chat = scene.chat()
    prompt, items = scene.prompt(("image", 0))
    chat.prefill(prompt["input_ids"], items)

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.kv.layers[1], "crop", interrupt)
    with pytest.raises(KeyboardInterrupt):
        chat.prefill(prompt["input_ids"], items)
    assert chat.num_cached == 0
    scene.assert_prefills(chat, prompt, items, reused=0)


def decode_alone(scene: Scene, chat: ChunkedPrefill, count: int) -> None:
    """Add tokens to the KV cache, as a caller does that decodes without the conversation."""
    with torch.no_grad():
        scene.model.model.language_model(
            input_ids=torch.full((1, count), 7),
            position_ids=torch.zeros(3, 1, count, dtype=torch.int64),
            past_key_values=chat.kv,
            use_cache=True,
        )


def test_interrupt_behind_kv_crop_leaves_no_tokens_of_the_caller_in_the_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene("qwen3_vl")
    chat = scene.chat()
    prompt, items = scene.prompt(("image", 0), ("video", 1))
    chat.prefill(prompt["input_ids"], items)
    edited = {**prompt, "input_ids": prompt["input_ids"].clone()}
    edited["input_ids"][0, -3] = 44

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chat.conversation.transcript, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            chat.prefill(edited["input_ids"], items)
    decode_alone(scene, chat, 20)
    num_tokens = prompt["input_ids"].shape[1]
    scene.assert_prefills(chat, prompt, items, reused=num_tokens - 3)


def test_kv_cache_that_the_caller_changed_between_two_chunks_raises() -> None:
    scene = Scene("qwen3_vl")
    chat = scene.chat(8)
    prompt, items = scene.prompt(("image", 0), ("video", 1))
    chunks = chat.chunks(prompt["input_ids"], items)
    next(chunks)
    decode_alone(scene, chat, 2)
    with pytest.raises(RuntimeError, match="next chunk begins at token 8, but the KV cache has 10 tokens"):
        next(chunks)
    scene.assert_prefills(chat, prompt, items, reused=8)


def test_full_sliding_window_starts_anew_if_the_prompt_differs() -> None:
    scene = Scene("qwen2_vl")
    config = scene.model.config.get_text_config()
    config.sliding_window, config.layer_types = 8, ["full_attention", "sliding_attention", "full_attention"]
    for layer, kind in zip(scene.model.model.language_model.layers, config.layer_types, strict=True):
        layer.attention_type = kind
        layer.self_attn.sliding_window = 8 if kind == "sliding_attention" else None
    scene.model.model.language_model.has_sliding_layers = True
    chat = scene.chat(5)
    prompt, items = scene.prompt(("image", 0), ("video", 1))
    scene.assert_prefills(chat, prompt, items, reused=0)
    num_tokens = prompt["input_ids"].shape[1]
    longer = scene.longer(prompt, 7)
    scene.assert_prefills(chat, longer, items, reused=num_tokens)
    edited = {**longer, "input_ids": longer["input_ids"].clone()}
    edited["input_ids"][0, -2] = 44
    scene.assert_prefills(chat, edited, items, reused=0)


def test_video_of_another_rate_at_the_same_tokens_ends_the_common_prefix() -> None:
    scene = Scene("qwen2_5_vl")
    chat = scene.chat()
    prompt, items = scene.prompt(("video", 1), ("image", 0))
    scene.assert_prefills(chat, prompt, items, reused=0)
    slower = {**prompt, "second_per_grid_ts": torch.tensor([4.0])}
    first = min(span.start for span in items[1].spans)
    scene.assert_prefills(chat, slower, scene.items(slower), reused=first)


VIDEO = {"video_grid_thw": [2, 4, 4]}  # 4 tokens per frame
MISTAKES = [
    ("qwen3_vl", "item 0 has both grid_thw and video_grid_thw", Span(1, 8), {**VIDEO, "grid_thw": [1, 4, 4]}),
    ("qwen3_vl", "video_grid_thw of item 0 must be a list of three ints", Span(1, 8), {"video_grid_thw": 3}),
    ("qwen3_vl", "must be a list of three ints", Span(1, 8), {"video_grid_thw": [True, 4, 4]}),
    ("qwen3_vl", "of qwen3_vl videos do not depend", Span(1, 8), {**VIDEO, "second_per_grid_t": 1.0}),
    ("qwen2_5_vl", "images do not depend", Span(1, 4), {"grid_thw": [1, 4, 4], "second_per_grid_t": 1.0}),
    ("qwen2_5_vl", "must be finite and at least 0", Span(1, 8), {**VIDEO, "second_per_grid_t": float("nan")}),
    ("qwen2_5_vl", "must be finite .*, got -1", Span(1, 8), {**VIDEO, "second_per_grid_t": -1}),
    ("qwen3_vl", "item 0 must have 4 rows, as its grid .*, got 8", Span(1, 4), {"grid_thw": [1, 4, 4]}),
    ("qwen3_vl", "spans of item 0 must cover 8 tokens, .* got 4", Span(1, 4), VIDEO),
    ("qwen3_vl", "grid_thw of item 0 must have sizes of at least 1", Span(1, 8), {"grid_thw": [-1, -4, 8]}),
    ("qwen3_vl", "frame 0 of item 0 has 4 rows, got a span from row 0 to row 7", Span(1, 8), VIDEO),
    ("glm4v", "item 0 ends at token 5 and item 0 begins at token 5", [Span(1, 4), Span(5, 4, 4)], VIDEO),
    ("qwen2_vl", "must be one run that begins at token 1: expected row 4 at token 5", "apart", VIDEO),
    ("glm4v", "frame 0 of item 0 must be one run", [Span(1, 2), Span(4, 6, 2)], VIDEO),
    ("glm4v", "expected row 0 at token 1, got row 4", [Span(1, 4, 4), Span(6, 4)], VIDEO),
]


@pytest.mark.parametrize(("name", "message", "spans", "arguments"), MISTAKES)
def test_video_with_wrong_tokens_or_grid_raises(name: str, message: str, spans: Any, arguments: Any) -> None:
    chat = Scene(name).chat()
    if spans == "apart":
        spans = [Span(1, 4), Span(7, 4, 4)]
    item = Item(None, spans, num_rows=8, **arguments)
    chat.prefill(torch.arange(1, 9), [])
    with pytest.raises(ValueError, match=message):
        chat.prefill(torch.arange(1, 20), [item])
    assert chat.num_cached == 8


def test_arguments_of_wrong_types_or_range_keep_the_conversation() -> None:
    scene = Scene("qwen2_5_vl")
    chat, ids = scene.chat(), torch.arange(1, 9)
    chat.prefill(ids, [])
    wrong: Any
    for wrong in ("1", True):
        item = Item(None, Span(0, 8), **VIDEO, second_per_grid_t=wrong)
        with pytest.raises(TypeError, match="second_per_grid_t of item 0 must be a number, got"):
            chat.prefill(torch.arange(11, 20), [item])
    for wrong in (None, 3, (item for item in ()), item):
        with pytest.raises(TypeError, match="items must be a sequence of Item objects, got"):
            chat.prefill(ids + 10, wrong)
    for wrong in (-1, 96, 10**9):
        with pytest.raises(IndexError, match=f"token 8 has id {wrong}, the embedding table has 96 rows"):
            chat.prefill(torch.tensor([*ids, wrong]), [])
    assert chat.num_cached == chat.kv.get_seq_length() == 8
    assert chat.conversation.transcript.length == 8


def test_attributes_of_a_conversation_are_checked_when_they_are_set() -> None:
    scene = Scene("qwen2_vl")
    chat = scene.chat(8)
    wrong: Any
    for wrong, error in ((0, ValueError), (-1, ValueError), (True, TypeError), (2.0, TypeError)):
        with pytest.raises(error, match="chunk_tokens"):
            chat.chunk_tokens = wrong
    with pytest.raises(TypeError, match="encode_ahead must be a bool, got int"):
        scene.chat(8, encode_ahead=1)
    with pytest.raises(TypeError, match="pipeline must be a VisionPipeline, got NoneType"):
        ChunkedPrefill(scene.model, None)  # type: ignore[arg-type]
    assert chat.chunk_tokens == 8
    chat.chunk_tokens = 3
    assert [hidden.shape[1] for hidden in chat.chunks(torch.arange(1, 8), [])] == [3, 3, 1]


def test_two_conversations_in_turns_keep_their_own_kv_caches() -> None:
    scene = Scene("qwen3_vl")
    one, two = scene.chat(5), scene.chat(7)
    for turn in range(1, 4):
        for chat, media in ((one, MEDIA), (two, MEDIA[::-1])):
            prompt, items = scene.prompt(*media[:turn])
            hidden = list(chat.chunks(prompt["input_ids"], items))
            with torch.no_grad():
                got = scene.model.lm_head(hidden[-1][:, -1])
            assert_close(got, scene.stock_logits(prompt)[:, -1])
    assert len(scene.pipeline.cache) == len(MEDIA)
