"""`ChunkedPrefill`: logits equal those of the stock forward, for any chunks and any common prefix."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache
from pairwise import pairwise
from torch import Tensor, nn

pytest.importorskip("transformers")

from attached import QWEN3, Tower
from prefill_scene import Scene
from tiny_models import FAMILIES, IMAGE, VIDEO, Call, TinyFamily

from vitcache import Chunk, Item, Namespace, Span, VisionPipeline
from vitcache.adapters.transformers import ChunkedPrefill, image_items, vision_pipeline

pytestmark = pytest.mark.transformers

GRID_FAMILIES = ["qwen3_vl", "qwen2_5_vl"]
each_grid_family = pytest.mark.parametrize("name", GRID_FAMILIES)
KEYS = [bytes([number]) * 32 for number in range(8)]


class Chat:
    """A model, a pipeline and a driver for it, and comparisons with the stock forward."""

    def __init__(self, family: TinyFamily = QWEN3, chunk_tokens: int = 5, **options: Any) -> None:
        self.family, self.model = family, family.model()
        self.tower = Tower(family, self.model)
        self.pipeline = vision_pipeline(
            self.model, make_cache(500, width=family.row_width), max_rows_per_encode=8
        )
        self.driver = ChunkedPrefill(self.model, self.pipeline, chunk_tokens, **options)

    def prompt(self, *seeds: int) -> tuple[Call, list[Item]]:
        """Return a prompt with the pictures of these seeds, and its items."""
        prompt = self.family.prompt(self.model, *seeds)
        self.tower.take()
        return prompt, self.items(prompt)

    def items(self, prompt: Call, **options: Any) -> list[Item]:
        names = "input_ids", "pixel_values", "image_grid_thw"
        return image_items(self.model, *(prompt[name] for name in names), **options)

    def prefill(self, input_ids: Tensor, items: list[Item]) -> Tensor:
        """Return the logits of all tokens that were not in the KV cache."""
        hidden = torch.cat(list(self.driver.chunks(input_ids, items)), dim=1)
        with torch.no_grad():
            return self.model.lm_head(hidden)

    def assert_prefills(self, prompt: Call, items: list[Item], *, reused: int = 0) -> None:
        """Prefill, and compare with the stock model's logits of the whole prompt in one piece."""
        got = self.prefill(prompt["input_ids"], items)
        with torch.no_grad():
            wanted = type(self.model).forward(self.model, **prompt).logits
        assert_close(got, wanted[:, reused:])
        assert self.driver.num_cached == self.driver.kv.get_seq_length() == prompt["input_ids"].shape[1]


def assert_close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pairwise(name=GRID_FAMILIES, chunk_tokens=[1, 3, 4, 5, 8, 13, 64], encode_ahead=[False, True])
def test_chunked_logits_equal_those_of_the_unchunked_stock_model(
    name: str, chunk_tokens: int, encode_ahead: bool
) -> None:
    # Images have 4, 6, 2 and 4 tokens. Chunks begin inside and at the edges of images; some have no image.
    chat = Chat(FAMILIES[name], chunk_tokens, encode_ahead=encode_ahead)
    prompt, items = chat.prompt(0, 1, 2, 3)
    chat.assert_prefills(prompt, items)
    assert len(chat.pipeline.cache) == 4


def test_chunks_have_chunk_tokens_and_prefill_returns_the_last_logits() -> None:
    chat = Chat(chunk_tokens=7)
    prompt, items = chat.prompt(0, 1)
    tokens = prompt["input_ids"].shape[1]
    lengths = [hidden.shape[1] for hidden in chat.driver.chunks(prompt["input_ids"], items)]
    assert lengths == [7] * (tokens // 7) + [tokens % 7]
    chat.driver.reset()
    with torch.no_grad():
        wanted = chat.model(**prompt).logits[:, -1]
    assert_close(chat.driver.prefill(prompt["input_ids"], items), wanted)


def test_prefill_without_images_or_a_batch_dimension() -> None:
    chat = Chat()
    input_ids = torch.arange(1, 13)[None]
    chat.assert_prefills({"input_ids": input_ids}, [])
    chat.driver.reset()
    assert chat.prefill(input_ids[0], []).shape == (1, 12, 96)


@each_grid_family
def test_chat_turn_prefills_new_tokens_and_encodes_the_new_image_only(name: str) -> None:
    chat = Chat(FAMILIES[name], chunk_tokens=6)
    cached = 0
    for turn in range(1, 5):
        prompt, items = chat.prompt(*range(turn))
        # The last token of the turn before is not in this prompt.
        cached = max(cached - 1, 0)
        chat.assert_prefills(prompt, items, reused=cached)
        cached = prompt["input_ids"].shape[1]
        assert len(chat.pipeline.cache) == turn


def test_image_in_the_kv_cache_is_neither_encoded_nor_looked_up() -> None:
    chat = Chat()
    first, items = chat.prompt(0)
    chat.assert_prefills(first, items)
    chat.pipeline.cache.clear()
    chat.tower.take()
    second, items = chat.prompt(0, 1)
    chat.prefill(second["input_ids"], items)
    assert chat.tower.take() == 1
    assert len(chat.pipeline.cache) == 1


def test_prefill_of_one_more_token_per_step_decodes_as_generate() -> None:
    chat = Chat()
    prompt, items = chat.prompt(0, 1)
    with torch.no_grad():
        output = chat.model.generate(**prompt, max_new_tokens=4, do_sample=False)
        wanted = output[0, prompt["input_ids"].shape[1] :].tolist()
    input_ids, got = prompt["input_ids"], []
    for _ in range(4):
        got.append(int(chat.driver.prefill(input_ids, items).argmax()))
        input_ids = torch.cat([input_ids, torch.tensor([[got[-1]]])], dim=1)
    assert got == wanted


@pytest.mark.parametrize("with_keys", [False, True])
def test_another_image_at_the_same_token_ids_ends_the_common_prefix(with_keys: bool) -> None:
    chat = Chat()
    keys = KEYS[:3] if with_keys else None
    prompt, _ = chat.prompt(0, 1, 2)
    chat.assert_prefills(prompt, chat.items(prompt, keys=keys))
    # Seed 4 has the grid of seed 1: the token ids of both prompts are the same.
    other, _ = chat.prompt(0, 4, 2)
    assert torch.equal(prompt["input_ids"], other["input_ids"])
    items = chat.items(other, keys=[KEYS[0], KEYS[4], KEYS[2]] if with_keys else None)
    chat.assert_prefills(other, items, reused=items[1].spans[0].start)


def test_prefill_begins_at_the_first_token_that_differs_or_at_the_last_one() -> None:
    chat = Chat()
    prompt, items = chat.prompt(0, 1)
    tokens = prompt["input_ids"].shape[1]
    chat.assert_prefills(prompt, items)
    chat.assert_prefills(prompt, items, reused=tokens - 1)
    edited = {**prompt, "input_ids": prompt["input_ids"].clone()}
    edited["input_ids"][0, tokens - 3] += 1
    chat.assert_prefills(edited, items, reused=tokens - 3)
    chat.assert_prefills({"input_ids": torch.arange(50, 60)[None]}, [])


def test_prompt_written_in_place_after_a_turn_is_compared_with_a_copy() -> None:
    chat = Chat()
    input_ids = torch.arange(1, 9)
    chat.prefill(input_ids, [])
    input_ids[3] = 60
    assert chat.prefill(input_ids, []).shape[1] == 5


def test_ids_at_image_tokens_may_be_any_ints() -> None:
    chat = Chat()
    prompt, items = chat.prompt(0, 1)
    input_ids = prompt["input_ids"].clone()
    input_ids[input_ids == IMAGE] = 1 << 40
    with torch.no_grad():
        assert_close(chat.prefill(input_ids, items), chat.model(**prompt).logits)


def test_prefill_places_precomputed_rows_beside_encoded_rows() -> None:
    chat = Chat()
    prompt, items = chat.prompt(0, 1)
    chat.prefill(prompt["input_ids"], items)
    lease = chat.pipeline.cache.get(items[0].digest[1])
    with lease:
        items[0] = Item(None, items[0].spans, rows=lease.to_tensor(), **items[0].encoder_kwargs)
    chat.driver.reset()
    chat.pipeline.cache.clear()
    chat.assert_prefills(prompt, items)
    assert len(chat.pipeline.cache) == 1


def test_failed_item_raises_with_its_index_and_keeps_the_chunks_before_it() -> None:
    chat = Chat()
    prompt, items = chat.prompt(0, 1)

    def fail() -> Any:
        raise OSError("the file is missing")

    broken = Item(fail, items[1].spans, key=KEYS[7], **items[1].encoder_kwargs)
    with pytest.raises(
        RuntimeError, match="item 1: expected 6 rows, got none: the file is missing"
    ) as caught:
        chat.prefill(prompt["input_ids"], [items[0], broken])
    assert isinstance(caught.value.__cause__, OSError)
    kept = chat.driver.num_cached
    assert 0 < kept <= items[1].spans[0].start
    assert chat.driver.kv.get_seq_length() == kept
    chat.assert_prefills(prompt, items, reused=kept)


def test_wrong_number_of_rows_raises_with_both_numbers() -> None:
    model = QWEN3.model()

    def encode(features: list[Tensor], items: list[Item]) -> list[Tensor]:
        return [torch.zeros(3, QWEN3.row_width) for _ in items]

    driver = ChunkedPrefill(model, VisionPipeline(encode, make_cache(500, width=QWEN3.row_width)))
    prompt = QWEN3.prompt(model, 0)
    items = image_items(model, prompt["input_ids"], prompt["pixel_values"], prompt["image_grid_thw"])
    with pytest.raises(RuntimeError, match="item 0: expected 4 rows, got 3"):
        driver.prefill(prompt["input_ids"], items)


def test_language_model_that_raises_empties_the_kv_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = Chat()
    prompt, items = chat.prompt(0)
    chat.prefill(prompt["input_ids"][:, :2], [])
    assert chat.driver.num_cached == 2

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(chat.model.model.language_model.layers[1], "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            chat.prefill(prompt["input_ids"], items)
    assert chat.driver.num_cached == 0
    chat.assert_prefills(prompt, items)


class Spy:
    """A pipeline that records its calls."""

    def __init__(self, pipeline: VisionPipeline) -> None:
        self.pipeline, self.key, self.cache = pipeline, pipeline.key, pipeline.cache
        self.calls: list[tuple[str, int]] = []
        self.prefetched = 0  # first token of the chunk

    def embed(self, chunks: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(("embed", chunks[0].start))
        return self.pipeline.embed(chunks, *args, **kwargs)

    def prefetch(self, chunks: Any, *, encode: bool) -> Any:
        self.prefetched = chunks[0].start
        self.calls.append(("prefetch", self.prefetched))
        handle = self.pipeline.prefetch(chunks, encode=encode)
        handle.wait(60)
        return handle

    def cancel(self, handle: Any) -> None:
        self.calls.append(("cancel", self.prefetched))
        self.pipeline.cancel(handle)


def test_next_chunk_is_prefetched_before_the_language_model_runs() -> None:
    chat = Chat(chunk_tokens=8, encode_ahead=True)
    prompt, items = chat.prompt(0, 1)
    tokens = prompt["input_ids"].shape[1]
    assert 16 < tokens <= 24
    spy: Any = Spy(chat.pipeline)
    driver = ChunkedPrefill(chat.model, spy, 8, encode_ahead=True)
    for _ in driver.chunks(prompt["input_ids"], items):
        spy.calls.append(("yield", driver.num_cached))
    first = [("embed", 0), ("prefetch", 8), ("yield", 8)]
    second = [("embed", 8), ("cancel", 8), ("prefetch", 16), ("yield", 16)]
    third = [("embed", 16), ("cancel", 16), ("yield", tokens)]
    assert spy.calls == first + second + third
    # Each image was encoded once: the second one by the prefetch.
    assert chat.tower.take() == 2


def test_prefix_comparison_hashes_only_images_within_the_common_token_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat = Chat()
    hashed: list[Item] = []
    key = chat.pipeline.key

    def recorded_key(item: Item) -> bytes:
        hashed.append(item)
        return key(item)

    monkeypatch.setattr(chat.pipeline, "key", recorded_key)
    driver = ChunkedPrefill(chat.model, chat.pipeline, 5)
    first, items = chat.prompt(0)
    driver.prefill(first["input_ids"], items)
    assert hashed == []
    second, new_items = chat.prompt(0, 1)
    chunks = driver.chunks(second["input_ids"], new_items)
    next(chunks)
    assert hashed == [items[0], new_items[0]]
    chunks.close()


def test_chunks_closed_early_cancels_the_prefetch() -> None:
    chat = Chat(chunk_tokens=8)
    prompt, items = chat.prompt(0, 1)
    spy: Any = Spy(chat.pipeline)
    chunks = ChunkedPrefill(chat.model, spy, 8).chunks(prompt["input_ids"], items)
    next(chunks)
    chunks.close()
    assert spy.calls == [("embed", 0), ("prefetch", 8), ("cancel", 8)]


def test_chunks_after_another_prompt_was_run_raises() -> None:
    chat = Chat(chunk_tokens=8)
    prompt, items = chat.prompt(0, 1)
    interrupted = chat.driver.chunks(prompt["input_ids"], items)
    next(interrupted)
    chat.prefill(torch.arange(50, 60), [])
    with pytest.raises(RuntimeError, match=r"next chunk begins at token 8, .* the KV cache has 10 tokens"):
        next(interrupted)
    chat.assert_prefills(prompt, items)


def test_chunks_after_another_prompt_of_equal_length_raises() -> None:
    chat = Chat(chunk_tokens=8)
    interrupted = chat.driver.chunks(torch.arange(1, 13), [])
    next(interrupted)
    chat.prefill(torch.arange(50, 58), [])
    assert chat.driver.num_cached == 8
    with pytest.raises(RuntimeError, match=r"another prompt was run or reset\(\) was called"):
        next(interrupted)


def test_tokens_that_the_caller_added_to_the_kv_cache_are_cut_off() -> None:
    chat = Chat()
    prompt, items = chat.prompt(0, 1)
    chat.assert_prefills(prompt, items)
    tokens = prompt["input_ids"].shape[1]
    with torch.no_grad():
        chat.model.model.language_model(
            input_ids=torch.tensor([[7, 8]]),
            position_ids=torch.zeros(3, 1, 2, dtype=torch.int64),
            past_key_values=chat.driver.kv,
            use_cache=True,
        )
    assert chat.driver.kv.get_seq_length() == tokens + 2
    longer = torch.cat([prompt["input_ids"], torch.tensor([[5]])], dim=1)
    got = chat.prefill(longer, items)
    chat.driver.reset()
    assert_close(got, chat.prefill(longer, items)[:, -1:])


def test_common_prefix_ends_at_equal_rows_with_another_grid() -> None:
    # Positions depend on the grid, so the keys and values differ although the rows are equal.
    chat = Chat()
    rows, input_ids = torch.randn(4, QWEN3.row_width), torch.arange(1, 10)
    square, wide = (
        [Item(None, Span(2, 4), rows=rows, key=bytes(32), grid_thw=grid)] for grid in ([1, 4, 4], [1, 2, 8])
    )
    chat.prefill(input_ids, square)
    assert chat.prefill(input_ids, wide).shape[1] == 7
    assert chat.prefill(input_ids, wide).shape[1] == 1


def test_given_rows_match_those_of_an_earlier_prompt_only_by_their_key() -> None:
    # The caller may overwrite a tensor in place; only a key tells whether its rows are equal.
    chat = Chat()
    rows, input_ids = torch.randn(4, QWEN3.row_width), torch.arange(1, 10)

    def prefill(key: bytes | None) -> torch.Tensor:
        return chat.prefill(input_ids, [Item(None, Span(2, 4), rows=rows, key=key, grid_thw=[1, 4, 4])])

    prefill(None)
    rows.copy_(torch.randn(rows.shape))
    again = prefill(None)
    assert again.shape[1] == 7  # the tokens before the rows are reused
    chat.driver.reset()
    assert_close(again[:, -1:], prefill(bytes(32))[:, -1:])
    assert prefill(bytes(32)).shape[1] == 1
    assert prefill(bytes(31) + b"1").shape[1] == 7
    assert prefill(None).shape[1] == 7


def test_kv_cache_may_be_replaced_by_a_copy() -> None:
    chat = Chat()
    prompt, items = chat.prompt(0, 1)
    chat.assert_prefills(prompt, items)
    chat.driver.kv = copy.deepcopy(chat.driver.kv)
    chat.assert_prefills(prompt, items, reused=prompt["input_ids"].shape[1] - 1)


def test_prompt_with_images_at_both_ends_gives_the_stock_logits() -> None:
    chat = Chat(chunk_tokens=3)
    call = chat.family.call(0, 1)
    input_ids = torch.tensor([[*[IMAGE] * 4, 5, *[IMAGE] * 6]])
    prompt = {"input_ids": input_ids, "mm_token_type_ids": (input_ids == IMAGE).int(), **call}
    chat.assert_prefills(prompt, chat.items(prompt))


def test_two_conversations_share_a_model_and_the_entries_of_a_pipeline() -> None:
    chat = Chat()
    prompt, items = chat.prompt(0, 1)
    chat.assert_prefills(prompt, items)
    calls = chat.tower.take()
    second_driver = ChunkedPrefill(chat.model, chat.pipeline, 9)
    with torch.no_grad():
        wanted = chat.model(**prompt).logits[:, -1]
    chat.tower.take()
    assert_close(second_driver.prefill(prompt["input_ids"], items), wanted)
    assert calls > 0
    assert chat.tower.take() == 0


GRID = {"grid_thw": [1, 4, 4]}
MISTAKES = [
    ("the prompt has no tokens", [], []),
    (r"token 1 is a placeholder \(id 90\), but no item covers it; .*: 1$", [1, IMAGE], []),
    (rf"token 0 is a placeholder \(id {VIDEO}\)", [VIDEO, 5], []),
    ("item 0 has no grid_thw", [1, 2, 3], [Item(None, Span(0, 2))]),
    ("spans of item 0 must cover 4 tokens, .* got 3", [1] * 9, [Item(None, Span(0, 3), **GRID)]),
    ("item 0 ends at token 12, the prompt has 9", [1] * 9, [Item(None, Span(8, 4), **GRID)]),
    (r"input_ids must have shape \(tokens,\) or \(1, tokens\), got \(2, 1\)", [[1], [2]], []),
    ("must cover 2 tokens, as its grid is .*, got 3", [1] * 9, [Item(None, Span(0, 3), grid_thw=[1, 3, 4])]),
    (
        r"grid_thw of item 0 must be a list of three ints, got tensor\(.*\)",
        [1] * 9,
        [Item(None, Span(0, 4), grid_thw=torch.tensor([1, 4, 4]))],
    ),
    (
        "item 0 must be one run that begins at token 1: expected row 2 at token 3, got token 4",
        [1] * 9,
        [Item(None, [Span(1, 2), Span(4, 2, 2)], **GRID)],
    ),
    (
        "item 1 ends at token 4 and item 0 begins at token 4: expected a token between two images",
        [1] * 9,
        [Item(None, Span(4, 4), **GRID), Item(None, Span(0, 4), **GRID)],
    ),
]


@pytest.mark.parametrize(("message", "ids", "items"), MISTAKES)
def test_wrong_prompt_raises_and_keeps_the_kv_cache(message: str, ids: list[int], items: list[Item]) -> None:
    chat = Chat()
    chat.prefill(torch.arange(1, 9), [])
    with pytest.raises(ValueError, match=message):
        chat.prefill(torch.tensor(ids, dtype=torch.int64), items)
    assert chat.driver.num_cached == 8


def test_chunk_tokens_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_tokens is 0, it must be at least 1"):
        Chat(chunk_tokens=0)


def test_model_without_a_head_and_prompt_that_is_a_list_are_refused() -> None:
    chat = Chat()
    with pytest.raises(TypeError, match="Qwen3VLModel has no head, which computes the logits"):
        ChunkedPrefill(chat.model.model, chat.pipeline)
    with pytest.raises(TypeError, match="input_ids must be a tensor, got list"):
        chat.prefill([[1, 2]], [])


def test_item_without_spans_is_ignored() -> None:
    chat = Chat()
    prompt, items = chat.prompt(0)
    chat.assert_prefills(prompt, [*items, Item(np.zeros(3), None)])


@pytest.mark.parametrize("name", ["llava_onevision", "gemma3"])
def test_vision_pipeline_refuses_families_without_grids(name: str) -> None:
    message = (
        rf"model type '{name}'\) cannot be put on a pipeline; model types that can: qwen2_vl, .*, glm_ocr$"
    )
    with pytest.raises(TypeError, match=message):
        vision_pipeline(FAMILIES[name].model())
    with pytest.raises(
        TypeError, match="Linear has no get_image_features, so it cannot be put on a pipeline"
    ):
        vision_pipeline(nn.Linear(1, 1))


def test_image_items_with_wrong_counts_or_types_raises() -> None:
    chat = Chat()
    prompt, _ = chat.prompt(0, 1)
    with pytest.raises(ValueError, match="keys must have one key per image: expected 2, got 1"):
        chat.items(prompt, keys=KEYS[:1])
    with pytest.raises(ValueError, match="the prompt has 4 tokens with id 90, the 2 items have 10 rows"):
        chat.items({**prompt, "input_ids": prompt["input_ids"][:, :8]})
    with pytest.raises(TypeError, match="image_grid_thw must be a tensor, got list"):
        chat.items({**prompt, "image_grid_thw": [[1, 4, 4]]})


@each_grid_family
def test_vision_pipeline_places_the_rows_of_the_stock_method(name: str) -> None:
    chat = Chat(FAMILIES[name])
    prompt, items = chat.prompt(0, 1, 2)
    assert [item.num_rows for item in items] == [4, 6, 2]
    hidden = chat.model.get_input_embeddings().weight.shape[1]
    levels = chat.pipeline.cache.row_width // hidden - 1
    input_ids = prompt["input_ids"][0]
    deepstack = torch.empty(levels, len(input_ids), hidden) if levels else None
    result = chat.pipeline.embed(
        [Chunk(items, 0, len(input_ids))],
        input_ids,
        chat.model.get_input_embeddings().weight,
        deepstack=deepstack,
    )
    assert not result.errors
    with torch.no_grad():
        output = chat.model.get_image_features(prompt["pixel_values"], prompt["image_grid_thw"])
    torch.testing.assert_close(result.inputs_embeds[input_ids == IMAGE], torch.cat(output.pooler_output))
    for level in range(levels):
        features = output.deepstack_features[level]
        wanted = features if isinstance(features, Tensor) else torch.cat(features)
        torch.testing.assert_close(deepstack[level][input_ids == IMAGE], wanted)


def test_vision_pipelines_share_entries_only_with_an_equal_namespace() -> None:
    model, cache = QWEN3.model(), make_cache(500, width=QWEN3.row_width)
    assert vision_pipeline(model, cache).namespace != vision_pipeline(model, cache).namespace
    first, second = (vision_pipeline(model, cache, namespace="both") for _ in range(2))
    assert first.namespace == second.namespace
    space = Namespace("both")
    names: list[Any] = ["both", space, b"both", space.digest().hex()]
    assert len({vision_pipeline(model, cache, namespace=name).namespace for name in names}) == 4
    as_bytes = vision_pipeline(model, cache, namespace=space.digest())
    assert as_bytes.namespace == vision_pipeline(model, cache, namespace=space).namespace
    with pytest.raises(TypeError, match="namespace must be a str, bytes, a Namespace or None, got int"):
        vision_pipeline(model, cache, namespace=3)  # type: ignore[arg-type]


def test_vision_pipelines_of_two_adapters_have_two_namespaces() -> None:
    peft = pytest.importorskip("peft")
    model, cache = QWEN3.model(), make_cache(500, width=QWEN3.row_width)
    config = peft.LoraConfig(target_modules=r".*visual.*qkv", r=2)
    adapted = peft.get_peft_model(model, config, adapter_name="a")
    adapted.add_adapter("b", config)
    names = []
    for adapter in ("a", "b", "a"):
        adapted.set_adapter(adapter)
        names.append(vision_pipeline(adapted, cache, namespace="both").namespace)
    assert names[0] == names[2] != names[1]


def test_vision_pipeline_device_bytes_may_be_a_str_and_not_a_bool() -> None:
    cache = vision_pipeline(QWEN3.model(), device_bytes="1 MiB").cache
    assert cache.stats().device_capacity_bytes <= 1 << 20
    for value, error in ((True, TypeError), ("1 mib", ValueError)):
        with pytest.raises(error, match=f"device_bytes .*{value}"):
            vision_pipeline(QWEN3.model(), device_bytes=value)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_kv_cache_is_passed_by_the_name_that_the_language_model_has(name: str) -> None:
    scene = Scene("qwen2_5_vl")
    prompt, items = scene.prompt(("image", 0))
    language_model, passed = scene.model.model.language_model, []
    stock = language_model.forward
    stock_name = "cache" if "cache" in inspect.signature(stock).parameters else "past_key_values"

    def forward(**given: Any) -> Any:
        passed.append(set(given) & {"cache", "past_key_values"})
        return stock(**{stock_name if key == name else key: value for key, value in given.items()})

    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
    forward.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined]
    language_model.forward = forward
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        logits = scene.chat().prefill(prompt["input_ids"], items)
    assert passed == [{name}] * len(passed) != []
    language_model.forward = stock
    assert torch.equal(logits, scene.chat().prefill(prompt["input_ids"], items))
