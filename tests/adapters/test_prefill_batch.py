"""`prefill_batch`: several prompts in common steps give the logits that each gives alone."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from prefill_scene import MEDIA, Scene, assert_close
from tiny_family import Call
from tiny_grids import GRID_FAMILIES

from vitcache import Item, Items
from vitcache.adapters.transformers import ChunkedPrefill, PrefillResult, prefill_batch

pytestmark = pytest.mark.transformers

BATCH = [MEDIA[:1], MEDIA[1:4], [], MEDIA[2:], MEDIA[:2]]


class Batch(Scene):
    """A scene with one conversation per prompt of a batch."""

    def __init__(self, name: str, num_chats: int, chunk_tokens: int = 8, **options: Any) -> None:
        super().__init__(name, **options)
        self.chats = [self.chat(chunk_tokens) for _ in range(num_chats)]
        self.calls: list[tuple[int, ...]] = []  # the shapes of the last batch's calls of the language model
        self._records = False
        self.model.model.language_model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: Any, args: Any, kwargs: Any) -> None:
        if self._records:
            self.calls.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    def run(self, prompts: list[Call], items: list[list[Item]] | None = None) -> PrefillResult:
        self.calls.clear()
        items = [self.items(prompt) for prompt in prompts] if items is None else items
        self._records = True
        try:
            return prefill_batch(self.chats, [prompt["input_ids"] for prompt in prompts], items)
        finally:
            self._records = False

    def assert_stock(self, result: PrefillResult, prompts: list[Call]) -> None:
        assert not result.errors
        assert_close(result.logits, self.wanted(prompts))
        for chat, prompt in zip(self.chats, prompts, strict=True):
            assert chat.num_cached == chat.kv.get_seq_length() == prompt["input_ids"].shape[1]

    def wanted(self, prompts: list[Call]) -> Tensor:
        return torch.cat([self.stock_logits(prompt)[:, -1] for prompt in prompts])


@pytest.mark.parametrize(
    ("name", "chunk_tokens"),
    [*((name, 24) for name in GRID_FAMILIES), *(("qwen3_vl", tokens) for tokens in (1, 7, 1000))],
)
def test_batch_of_prompts_gives_the_stock_logits_of_each(name: str, chunk_tokens: int) -> None:
    batch = Batch(name, len(BATCH), chunk_tokens)
    prompts = [batch.family.mixed_prompt(*media) for media in BATCH]
    batch.assert_stock(batch.run(prompts), prompts)
    # Next turns: one prompt is longer, one the same, one decodes, one differs in its middle, one is shorter.
    edited = {**prompts[3], "input_ids": prompts[3]["input_ids"].clone()}
    edited["input_ids"][0, 1] = 44
    prompts = [
        batch.family.mixed_prompt(*MEDIA[:3]),
        prompts[1],
        batch.longer(prompts[2], 7),
        edited,
        batch.family.mixed_prompt(*MEDIA[:1]),
    ]
    batch.assert_stock(batch.run(prompts), prompts)
    for token in (8, 9):
        prompts = [batch.longer(prompt, token) for prompt in prompts]
        batch.assert_stock(batch.run(prompts), prompts)


def test_step_of_similar_prompts_is_one_call_of_the_language_model() -> None:
    batch = Batch("qwen3_vl", 3, 1000)
    prompts = [batch.family.mixed_prompt(("image", seed)) for seed in (0, 1, 3)]
    batch.run(prompts)
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)
    assert batch.calls == [(3, longest)]
    batch.run([batch.longer(prompt, 7) for prompt in prompts])
    assert batch.calls == [(3, 1)]


def test_step_of_a_long_prompt_and_decoding_ones_pads_no_row_to_the_long_one() -> None:
    batch = Batch("qwen3_vl", 3, 1000)
    short = [batch.family.mixed_prompt(("image", seed)) for seed in (0, 1)]
    empty = {"input_ids": torch.tensor([[1]]), "mm_token_type_ids": torch.zeros(1, 1, dtype=torch.int32)}
    batch.run([*short, empty])
    long = batch.family.mixed_prompt(*MEDIA)
    prompts = [*(batch.longer(prompt, 7) for prompt in short), long]
    batch.assert_stock(batch.run(prompts), prompts)
    assert sorted(batch.calls) == [(1, long["input_ids"].shape[1] - 1), (2, 1)]


def test_linear_attention_runs_each_prompt_in_its_own_call() -> None:
    batch = Batch("qwen3_5", 2, 1000)
    prompts = [batch.family.mixed_prompt(("image", seed)) for seed in (0, 1)]
    batch.assert_stock(batch.run(prompts), prompts)
    assert batch.calls == [(1, prompt["input_ids"].shape[1]) for prompt in prompts]


def test_step_has_at_most_chunk_tokens_tokens() -> None:
    batch = Batch("qwen3_vl", 3, 10)
    batch.chats[1].chunk_tokens = 6
    prompts = [batch.family.mixed_prompt(*media) for media in (MEDIA[:1], MEDIA[:3], MEDIA)]
    batch.assert_stock(batch.run(prompts), prompts)
    total = sum(prompt["input_ids"].shape[1] for prompt in prompts)
    assert total <= sum(rows * columns for rows, columns in batch.calls) < 2 * total
    assert all(columns <= 6 for _, columns in batch.calls)


def test_image_that_several_prompts_have_is_encoded_once() -> None:
    batch = Batch("qwen3_vl", 3, 1000)
    prompts = [batch.family.mixed_prompt(("image", 0), ("image", seed)) for seed in (1, 1, 0)]
    result = batch.run(prompts)
    assert len(batch.pipeline.cache) == 2
    assert batch.pipeline.cache.stats().insertions == 2
    batch.assert_stock(result, prompts)


def test_prompt_with_a_failed_item_has_nan_logits_and_the_others_come_out_right() -> None:
    batch = Batch("qwen3_vl", 3, 9)
    prompts = [batch.family.mixed_prompt(*media) for media in (MEDIA[:2], MEDIA[:3], MEDIA[3:])]
    items = [batch.items(prompt) for prompt in prompts]
    good, image = list(items[1]), items[1][0]

    def fail() -> Any:
        raise OSError("the file is missing")

    items[1][0] = Item(fail, image.spans, key=bytes(32), **image.encoder_kwargs)
    result = batch.run(prompts, items)
    [error] = result.errors
    assert (error.chunk, error.item, error.expected, error.found) == (1, 0, image.num_rows, None)
    assert isinstance(error.cause, OSError)
    assert result.logits[1].isnan().all()
    assert_close(result.logits[[0, 2]], batch.wanted([prompts[0], prompts[2]]))
    kept = batch.chats[1].num_cached
    assert kept == batch.chats[1].kv.get_seq_length() <= image.spans[0].start
    batch.assert_stock(batch.run(prompts, [items[0], good, items[2]]), prompts)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_step_with_a_failed_item_runs_the_pipeline_once(
    failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With `agree`, the other ranks run one step, even if the item fails on this rank alone.
    flags: list[int] = []

    def agree(found: list[bool]) -> list[bool]:
        flags.append(len(found))
        return found

    batch = Batch("qwen3_vl", 3, 1000, agree=agree)
    prompts = [batch.family.mixed_prompt(("image", seed), ("video", 1)) for seed in (0, 1, 2)]
    items = [batch.items(prompt) for prompt in prompts]
    image = items[failing][0]
    items[failing][0] = Item(None, image.spans, key=bytes(32), **image.encoder_kwargs)
    result = batch.run(prompts, items)
    assert [(error.chunk, error.item) for error in result.errors] == [(failing, 0)]
    others = [number for number in range(3) if number != failing]
    assert_close(result.logits[others], batch.wanted([prompts[number] for number in others]))
    assert len(flags) == 1
    assert [chat.num_cached == 0 for chat in batch.chats] == [number == failing for number in range(3)]


def test_batch_whose_items_all_fail_has_only_nan_logits() -> None:
    batch = Batch("qwen3_vl", 2, 100)
    prompts = [batch.family.mixed_prompt(("image", seed)) for seed in (0, 1)]
    items = [batch.items(prompt)[0] for prompt in prompts]
    broken = [[Item(None, item.spans, key=bytes(32), **item.encoder_kwargs)] for item in items]
    result = batch.run(prompts, broken)
    assert [(error.chunk, error.item) for error in result.errors] == [(0, 0), (1, 0)]
    assert result.logits.shape == (2, 96)
    assert result.logits.isnan().all()
    assert batch.calls == []


def test_language_model_that_raises_resets_the_conversations_of_its_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = Batch("qwen3_vl", 3, 1000)
    prompts = [batch.family.mixed_prompt(("image", seed)) for seed in (0, 1, 2)]
    batch.run(prompts)
    longer = [batch.longer(prompt, 7) for prompt in prompts]

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(batch.model.model.language_model.layers[1], "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            batch.run(longer)
    assert [chat.num_cached for chat in batch.chats] == [0, 0, 0]
    batch.assert_stock(batch.run(longer), longer)


def test_batch_shares_conversations_with_single_calls() -> None:
    batch = Batch("qwen3_vl", 2, 7)
    prompts = [batch.family.mixed_prompt(*media) for media in (MEDIA[:2], MEDIA[1:3])]
    batch.run(prompts)
    prompts = [batch.longer(prompt, 7) for prompt in prompts]
    one = batch.chats[0].prefill(prompts[0]["input_ids"], batch.items(prompts[0]))
    assert_close(one, batch.wanted(prompts[:1]))
    prompts = [batch.longer(prompt, 8) for prompt in prompts]
    batch.assert_stock(batch.run(prompts), prompts)


def test_disabled_batch_encodes_all_images_and_counts_each_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    batch = Batch("qwen3_vl", 2, 1000)
    prompts = [batch.family.mixed_prompt(("image", seed)) for seed in (0, 1)]
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    with caplog.at_level(logging.WARNING):
        batch.assert_stock(batch.run(prompts), prompts)
    assert len(batch.pipeline.cache) == 0
    assert batch.chats[0].disabled_calls == 1


PLAIN = torch.arange(1, 9)


def test_batch_with_wrong_arguments_raises_and_changes_no_conversation() -> None:
    batch, other = Batch("qwen3_vl", 2, 8), Batch("qwen3_vl", 1, 8)
    one, two = batch.chats
    one.prefill(PLAIN, [])
    foreign: Any = other.chats[0]
    second = ChunkedPrefill(batch.model, other.pipeline)
    with pytest.raises(ValueError, match="chats is empty"):
        prefill_batch([], [], [])
    with pytest.raises(ValueError, match=r"input_ids must have one .* expected 2, got 1"):
        prefill_batch([one, two], [PLAIN], [[], []])
    with pytest.raises(TypeError, match=r"input_ids must be a sequence with one .*, got Tensor"):
        prefill_batch([one, two], torch.stack([PLAIN, PLAIN]), [[], []])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"chats must be a sequence with one .*, got ChunkedPrefill"):
        prefill_batch(one, [PLAIN], [[]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"items must be a sequence with one .*, got NoneType"):
        prefill_batch([one], [PLAIN], None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prompt 1: items must be a sequence of Item objects, got NoneType"):
        prefill_batch([one, two], [PLAIN + 1, PLAIN], [[], None])  # type: ignore[list-item]
    with pytest.raises(IndexError, match="prompt 1: token 2 has id 96, the embedding table has 96 rows"):
        prefill_batch([one, two], [PLAIN + 1, torch.tensor([1, 2, 96])], [[], []])
    with pytest.raises(ValueError, match=r"items must have one .* expected 2, got 0"):
        prefill_batch([one, two], [PLAIN, PLAIN], [])
    with pytest.raises(ValueError, match="chats 0 and 1 are the same object"):
        prefill_batch([one, one], [PLAIN, PLAIN], [[], []])
    with pytest.raises(TypeError, match="chats must be ChunkedPrefill objects, got int at 1"):
        prefill_batch([one, 3], [PLAIN, PLAIN], [[], []])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="chat 1 has another model than chat 0"):
        prefill_batch([one, foreign], [PLAIN, PLAIN], [[], []])
    with pytest.raises(ValueError, match="chat 1 has another pipeline than chat 0"):
        prefill_batch([one, second], [PLAIN, PLAIN], [[], []])
    with pytest.raises(ValueError, match="prompt 1: the prompt has no tokens"):
        prefill_batch([one, two], [PLAIN, PLAIN[:0]], [[], []])
    with pytest.raises(
        TypeError, match=r"prompt 1: input_ids are torch\.float32, they must be int64 or int32"
    ):
        prefill_batch([one, two], [PLAIN + 1, PLAIN.float()], [[], []])
    with pytest.raises(TypeError, match="prompt 0: "):
        prefill_batch([one, two], [PLAIN, PLAIN], [[3], []])  # type: ignore[list-item]
    assert (one.num_cached, two.num_cached, foreign.num_cached) == (8, 0, 0)


def test_batch_accepts_items_objects_and_int32_ids() -> None:
    batch = Batch("qwen3_vl", 2, 8)
    prompts = [batch.family.mixed_prompt(*media) for media in (MEDIA[:1], MEDIA[:2])]
    items = [Items(batch.items(prompt)) for prompt in prompts]
    ids = [prompt["input_ids"].int() for prompt in prompts]
    batch.assert_stock(prefill_batch(tuple(batch.chats), tuple(ids), tuple(items)), prompts)
