"""`Transcript`: positions and common prefixes equal those of whole prompts, at the cost of new tokens."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from tiny_family import Call

pytest.importorskip("transformers")

from prefill_scene import MEDIA, Scene
from tiny_grids import GRID_FAMILIES
from torch_version import HAS_EXCHANGE

from vitcache import Item, Span
from vitcache.adapters.transcript import Transcript
from vitcache.bench.frames import count_frames

pytestmark = pytest.mark.transformers


def stock_positions(scene: Scene, prompt: Call) -> np.ndarray:
    names = "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts"
    arguments = {name: prompt[name] for name in names if name in prompt}
    return scene.model.model.get_rope_index(prompt["input_ids"], **arguments)[0][:, 0].numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", GRID_FAMILIES)
def test_positions_of_any_sequence_of_prompts_equal_the_stock_ones(name: str, seed: int) -> None:
    scene, choose = Scene(name), random.Random(seed)
    transcript = Transcript(scene.model.model)
    media: list[tuple[str, int]] = []
    num_cached = 0
    before: np.ndarray = np.empty(0, np.int64)
    for _ in range(12):
        # A longer or shorter list of images and videos, or one with other elements, and more text.
        media = media[: choose.choice([len(media), len(media), choose.randrange(len(media) + 1)])]
        media = media + [(choose.choice(["image", "video"]), choose.randrange(6)) for _ in range(2)]
        prompt, items = scene.prompt(*media)
        prompt = scene.longer(prompt, *(choose.randrange(40) for _ in range(choose.randrange(1, 5))))
        found = transcript.compare(prompt["input_ids"], items, num_cached, scene.pipeline.key)
        ids = prompt["input_ids"][0].numpy()
        assert found.start <= found.common <= min(num_cached, len(ids) - 1)
        assert (ids[: found.common] == before[: found.common]).all()
        transcript.write(found)
        assert (transcript.ids(0, len(ids)) == ids).all()
        assert (transcript.positions(0, len(ids)) == stock_positions(scene, prompt)).all()
        types = transcript.runs.token_types(0, len(ids))
        assert (types == prompt["mm_token_type_ids"][0].numpy()).all()
        # Any number of tokens may be in the KV cache, also if that ends inside an image.
        num_cached, before = choose.randrange(len(ids) + 1), ids


def test_seconds_are_float32_as_the_processor_returns_them(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene("qwen2_5_vl")
    monkeypatch.setattr(scene.model.config.vision_config, "tokens_per_second", 4)
    transcript = Transcript(scene.model.model)
    ids, seconds = torch.tensor([1, *[91] * 6, 2]), torch.tensor([0.7])
    # In float64, 5 * 4 * 0.7 is less than 14, because the float32 next to 0.7 is less than 0.7.
    # Older versions of transformers take int(0.7) seconds.
    video = Item(None, Span(1, 6), video_grid_thw=[6, 2, 2], second_per_grid_t=float(seconds))
    prompt = {"input_ids": ids[None], "mm_token_type_ids": 2 * (ids == 91).int()[None]}
    prompt |= {"video_grid_thw": torch.tensor([[6, 2, 2]]), "second_per_grid_ts": seconds}
    wanted = stock_positions(scene, prompt)
    torch.set_default_dtype(torch.float64)
    try:
        transcript.write(transcript.compare(ids, [video], 0, scene.pipeline.key))
    finally:
        torch.set_default_dtype(torch.float32)
    assert (transcript.positions(0, len(ids)) == wanted).all()


def test_compare_changes_nothing_until_write() -> None:
    scene = Scene("qwen3_vl")
    transcript = Transcript(scene.model.model)
    prompt, items = scene.prompt(*MEDIA[:2])
    first = transcript.compare(prompt["input_ids"], items, 0, scene.pipeline.key)
    assert transcript.length == 0
    with pytest.raises(RuntimeError, match="the transcript has no prompt"):
        _ = transcript.runs
    transcript.write(first)
    num_tokens = transcript.length
    other, items = scene.prompt(*MEDIA[:1])
    transcript.compare(other["input_ids"], items, num_tokens, scene.pipeline.key)
    with pytest.raises(ValueError, match="token 3 is a placeholder"):
        transcript.compare(other["input_ids"], [], num_tokens, scene.pipeline.key)
    assert (transcript.ids(0, num_tokens) == prompt["input_ids"][0].numpy()).all()
    assert (transcript.positions(0, num_tokens) == stock_positions(scene, prompt)).all()


class Pages(Scene):
    """A chat with pages of one image each, whose rows are given, and an encoder of positions that counts."""

    ROWS = 4

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("qwen2_5_vl")
        self.driver = self.chat(10_000)
        self.ids: list[int] = []
        self.items_: list[Item] = []
        self.positions_of: list[int] = []  # number of tokens of each call
        base = self.model.model
        stock = base.get_rope_index

        def count_tokens(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.positions_of.append(input_ids.shape[1])
            return stock(input_ids, *args, **kwargs)

        monkeypatch.setattr(base, "get_rope_index", count_tokens)
        for _ in range(count):
            self.add_page()
        self.step()

    def add_page(self) -> None:
        self.ids += [5, 6, 92]
        rows = torch.zeros(self.ROWS, 32)
        key = len(self.items_).to_bytes(32, "little")
        self.items_.append(Item(None, Span(len(self.ids), self.ROWS), rows=rows, key=key, grid_thw=[1, 4, 4]))
        self.ids += [*[90] * self.ROWS, 93]

    def step(self) -> None:
        self.driver.prefill(torch.tensor([self.ids]), self.items_)

    def decode(self) -> None:
        self.ids.append(7)
        self.step()


def test_decoded_token_enters_equally_many_frames_for_3_and_300_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = []
    for count in (3, 300):
        pages = Pages(count, monkeypatch)
        pages.decode()
        frames.append(sum(count_frames(pages.decode).values()))
    assert frames[0] == frames[1] < (100 if HAS_EXCHANGE else 110)


def test_turn_computes_positions_of_new_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(30, monkeypatch)
    assert pages.positions_of == [30 * 8 + 1]  # and one more text token
    pages.decode()
    assert len(pages.positions_of) == 1  # positions of text follow without a call
    pages.add_page()
    pages.step()
    assert pages.positions_of[1:] == [8 + 1]


def test_turn_checks_and_hashes_new_items_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(30, monkeypatch)
    keyed: list[Item] = []
    key = pages.pipeline.key
    monkeypatch.setattr(pages.pipeline, "key", lambda item: keyed.append(item) or key(item))
    pages.add_page()
    pages.step()
    assert keyed == []
    old = pages.items_[3]
    pages.items_[3] = Item(None, old.spans, rows=old.rows, key=old.key, grid_thw=[1, 4, 4])
    pages.decode()
    assert keyed == []  # equal given keys tell that the items are equal
    pages.items_[3] = Item(None, old.spans, rows=old.rows, key=bytes(31) + b"x", grid_thw=[1, 4, 4])
    pages.decode()
    assert [item.key for item in keyed] == [old.key, bytes(31) + b"x"]
    assert pages.driver.num_cached == len(pages.ids)


def test_turn_with_new_item_objects_enters_few_frames_per_item(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(100, monkeypatch)
    pages.decode()
    pages.items_ = [
        Item(None, item.spans, rows=item.rows, key=item.key, **item.encoder_kwargs) for item in pages.items_
    ]
    keyed: list[Item] = []
    monkeypatch.setattr(pages.pipeline, "key", lambda item: keyed.append(item))
    frames = count_frames(pages.decode)
    assert keyed == []
    assert pages.driver.num_cached == len(pages.ids)
    assert frames["adapters/item_runs.py"] < 8 * 100


@pytest.mark.parametrize("wrong", [[True, 4, 4], [1.0, 4, 4], [1, torch.tensor([4, 4]), 4], [1, 4, 4, 4]])
def test_grid_of_wrong_types_that_equals_an_earlier_one_is_refused(wrong: Any) -> None:
    scene = Scene("qwen2_vl")
    chat, ids = scene.chat(), torch.arange(1, 10)

    def item(grid: Any) -> Item:
        return Item(None, Span(2, 4), rows=torch.zeros(4, 32), key=bytes(32), grid_thw=grid)

    chat.prefill(ids, [item([1, 4, 4])])
    with pytest.raises(ValueError, match="grid_thw of item 0 must be a list of three ints"):
        chat.prefill(ids, [item(wrong)])
    assert chat.num_cached == len(ids)


def test_rows_of_another_width_with_an_equal_key_end_the_common_prefix() -> None:
    scene = Scene("qwen3_vl")
    chat, ids = scene.chat(), torch.arange(1, 10)
    rows = torch.ones(4, 96)

    def num_run(rows: torch.Tensor) -> int:
        width = rows.shape[1]
        item = Item(None, Span(2, 4), rows=rows, row_width=width, key=bytes(32), grid_thw=[1, 4, 4])
        return sum(hidden.shape[1] for hidden in chat.chunks(ids, [item]))

    num_run(rows)
    assert num_run(rows) == 1
    assert num_run(rows[:, :32]) == 7  # without deepstack columns
