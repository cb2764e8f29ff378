"""`RequestItems`: the items of a request, made once, and made again after SGLang has changed them."""

from __future__ import annotations

import copy
import gc
import itertools
import logging
import pickle
import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from sglang_fakes.model import HIDDEN, Model, rows_of
from sglang_fakes.requests import DataItem, Inputs, Modality, feature, image, request
from sglang_fakes.scene import Scene, Window

from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.item_factory import ItemFactory
from vitcache.adapters.sglang.request_items import RequestItems, occupy
from vitcache.adapters.sglang.tenant import remember_tenant
from vitcache.pipeline.items import Items
from vitcache.placement.spans import Span


def factory(device: str = "cpu", width: int = HIDDEN) -> ItemFactory:
    return ItemFactory(
        lambda modality: width, lambda modality: None, torch.device(device), torch.float32, False, Counts()
    )


FACTORY = factory()


def read(inputs: Inputs, start: int = 0, stop: int = 100, made_by: ItemFactory = FACTORY) -> Items:
    return RequestItems.of(inputs).read(inputs.mm_items, start, stop, made_by)


def test_items_are_made_once_for_all_chunks() -> None:
    inputs = Inputs([image(1, (0, 3)), image(2, (5, 6), (9, 9))])
    items = read(inputs, 0, 4)
    assert read(inputs, 4, 8) is items
    assert [item.spans for item in items] == [(Span(0, 4),), (Span(5, 2), Span(9, 1, 2))]


def append(inputs: Inputs) -> None:
    inputs.mm_items.append(image(3, (7, 8)))


def replace(inputs: Inputs) -> None:
    inputs.mm_items[0] = image(1, (0, 3))


def remove(inputs: Inputs) -> None:
    inputs.mm_items = inputs.mm_items[:1]


def move(inputs: Inputs) -> None:
    inputs.mm_items[1].offsets = [(8, 9)]  # type: ignore[union-attr]


def give_rows(inputs: Inputs) -> None:
    inputs.mm_items[1].precomputed_embeddings = torch.ones(2, HIDDEN)  # type: ignore[union-attr]


def change_tenant(inputs: Inputs) -> None:
    remember_tenant(request(inputs, "another"))


CHANGES = [append, replace, remove, move, give_rows, change_tenant]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_items_are_made_again_after_a_change(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    inputs = Inputs([image(1, (0, 3)), image(2, (5, 6))])
    before = read(inputs)
    change(inputs)
    assert read(inputs) is not before
    scene = Scene(monkeypatch)
    scene.step(Window(inputs, 0, 12))


def test_moved_item_keeps_its_key_only_if_its_rows_stay() -> None:
    """Another place of the prompt has other offsets, so the key is computed again, and is the same."""
    inputs = Inputs([image(1, (0, 3), identity=bytes(32))])
    [first] = read(inputs)
    inputs.mm_items[0].offsets = [(4, 7)]  # type: ignore[union-attr]
    [moved] = read(inputs)
    inputs.mm_items[0].offsets = [(4, 6)]  # type: ignore[union-attr]
    [shorter] = read(inputs)
    assert moved.key == first.key
    assert shorter.key != first.key


def test_items_of_two_models_are_made_for_each() -> None:
    inputs = Inputs([image(1, (0, 3))])
    draft = factory(width=2 * HIDDEN)
    assert [read(inputs)[0].row_width, read(inputs, made_by=draft)[0].row_width] == [HIDDEN, 2 * HIDDEN]
    assert read(inputs)[0].row_width == HIDDEN


def test_none_among_the_items_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs([None, image(1, (0, 3)), None])
    assert len(read(inputs)) == 1
    assert read(inputs) is read(inputs)
    Scene(monkeypatch).step(Window(inputs, 0, 6), Window(Inputs([None]), 0, 2))


@pytest.mark.parametrize("offsets", [None, [], (), [(5, 4)]], ids=repr)
def test_item_without_offsets_has_no_rows(monkeypatch: pytest.MonkeyPatch, offsets: Any) -> None:
    scene = Scene(monkeypatch)
    unused = DataItem(feature=feature(1, 3), offsets=offsets)
    scene.step(Window(Inputs([unused, image(2, (1, 2))]), 0, 4))
    assert scene.service.stats().errors == 0
    assert scene.model.num_encoded == 1


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("number", [int, np.int64])
def test_pair_without_tokens_has_no_rows(monkeypatch: pytest.MonkeyPatch, place: int, number: type) -> None:
    scene = Scene(monkeypatch)
    item = image(1, (1, 2), (4, 4), (6, 8))
    assert item.offsets is not None
    item.offsets.insert(place, (number(3 * place), number(3 * place - 1)))
    inputs = Inputs([item, image(2, (9, 9)), DataItem(feature=feature(3, 0), offsets=[(5, 4), (0, -1)])])
    scene.step(Window(inputs, 0, 12))
    for start in range(0, 12, 5):
        scene.step(Window(inputs, start, 5))
    assert scene.service.stats().errors == 0
    assert scene.model.num_encoded == 2


BAD_OFFSETS: dict[str, Any] = {
    "inverted": [(4, 2)],
    "inverted by a tensor": [(torch.tensor([4, 4]), torch.tensor([3, 3]))],
    "negative": [(-3, 2)],
    "negative and inverted": [(-1, -4)],
    "overlap inside": [(2, 5), (5, 7)],
    "equal": [(2, 5), (2, 5)],
    "overlap with the other item": [(2, 9)],
    "last token of the other item": [(2, 8)],
    "huge": [(0, 2**60)],
    "more than 64 bits": [(0, 2**70)],
    "floats": [(2.0, 4.0)],
    "texts": [("2", "4")],
    "bools": [(False, True)],
    "pair of none": [(None, None)],
    "none": [None],
    "triple": [(2, 3, 4)],
    "single": [(2,)],
    "flat": (2, 4),
    "number": 3,
    "text": "24",
    "object": object(),
    "array of three": np.array([[2, 4, 5]]),
}


@pytest.mark.parametrize("offsets", BAD_OFFSETS.values(), ids=BAD_OFFSETS)
def test_item_with_bad_offsets_is_left_out_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, offsets: Any
) -> None:
    scene = Scene(monkeypatch)
    good, bad = image(1, (8, 10)), DataItem(feature=feature(2, 4))
    windows = (Window(Inputs([good, bad]), 0, 14), Window(Inputs([image(3, (0, 2))]), 0, 4))
    scene.step(*windows)  # the item has no offsets yet
    bad.offsets = offsets
    caplog.clear()
    rows, _ = scene.embed(*windows, ids=torch.full((18,), 3))
    assert torch.equal(rows[8:11], rows_of(Modality.IMAGE, good.feature))
    assert torch.equal(rows[14:17], rows_of(Modality.IMAGE, feature(3, 3)))
    assert torch.equal(rows[:8], scene.table.weight.detach()[3].expand(8, -1))
    assert scene.service.stats().errors == 1
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ["left out" in record.getMessage() for record in errors] == [True]
    for _ in range(2):  # counted and logged once per request
        scene.embed(*windows, ids=torch.full((18,), 3))
    assert scene.service.stats().errors == 1


def test_largest_token_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    last = 2**60
    scene.step(Window(Inputs([image(1, (last - 1, last))]), last - 2, 2))
    scene.step(Window(Inputs([image(2, (0, 1)), image(3, (last, last))]), 0, 3))
    assert scene.service.stats().errors == 0


def test_item_with_more_rows_than_memory_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    huge = DataItem(feature=feature(1, 3), offsets=[(4, 2**59)])
    good = image(2, (0, 2))
    scene.step(Window(Inputs([good, huge]), 0, 3))
    rows, _ = scene.embed(Window(Inputs([good, huge]), 0, 6), ids=torch.zeros(6, dtype=torch.long))
    assert torch.equal(rows[:3], rows_of(Modality.IMAGE, good.feature))
    assert not rows[4:].any()
    assert scene.service.stats().errors == 1


def test_offsets_of_lists_arrays_and_numpy_numbers_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    for number, offsets in enumerate(([[2, 4]], np.array([[2, 4]]), [(np.int64(2), np.int32(4))])):
        item = DataItem(feature=feature(number, 3), offsets=[(2, 4)])
        inputs = Inputs([item])
        scene.step(Window(inputs, 0, 6))
        item.offsets = offsets if isinstance(offsets, list) else list(map(tuple, offsets))
        scene.step(Window(inputs, 0, 6))
    assert scene.service.stats().errors == 0


def test_occupy_agrees_with_sets_of_tokens() -> None:
    generator = random.Random(5)
    for _ in range(300):
        occupied: list[tuple[int, int]] = []
        tokens: set[int] = set()
        for _ in range(generator.randrange(8)):
            spans = [Span(generator.randrange(12), generator.randrange(4)) for _ in range(2)]
            wanted = [token for span in spans for token in range(span.start, span.stop)]
            if len(set(wanted)) < len(wanted) or tokens & set(wanted):
                with pytest.raises(ValueError, match="overlap"):
                    occupy(spans, occupied)
            else:
                occupy(spans, occupied)
                tokens |= set(wanted)
            found = [token for first, stop in occupied for token in range(first, stop)]
            assert found == sorted(tokens)


def test_item_that_a_session_passes_on_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn makes new `MultimodalInputs` with the items of the earlier turn."""
    scene = Scene(monkeypatch)
    first = image(1, (0, 3))
    scene.step(Window(Inputs([first]), 0, 6))
    rows = rows_of(Modality.IMAGE, first.feature)
    first.feature = None
    second = image(2, (7, 8))
    scene.step(Window(Inputs([first, second]), 0, 10), truth={id(first): rows})
    assert scene.model.num_encoded == 2


def test_unshared_item_is_reused_by_the_requests_that_have_the_same_object(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(monkeypatch)
    same = image(1, (0, 3), proxy=object())
    for _ in range(3):
        scene.step(Window(Inputs([same]), 0, 6))
    scene.step(Window(Inputs([image(1, (0, 3), proxy=object())]), 0, 6))
    assert scene.model.num_encoded == 2
    assert scene.service.stats().unshared == 2
    assert sum("cannot be hashed" in record.getMessage() for record in caplog.records) == 1


def test_released_features_are_not_needed_while_the_rows_are_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    inputs = Inputs([image(1, (0, 3)), image(2, (5, 8))])
    truth = {id(item): rows_of(Modality.IMAGE, item.feature) for item in inputs.mm_items if item}
    scene.step(Window(inputs, 0, 10))
    inputs.release_features()
    scene.step(Window(inputs, 2, 8), truth=truth)
    assert scene.service.stats().errors == 0


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_released_feature_whose_rows_were_lost_fails_alone(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    scene = Scene(monkeypatch)
    released, kept = image(1, (0, 3)), image(2, (5, 8))
    if kind == "array":
        released.feature = released.feature.numpy()
    window = Window(Inputs([released, kept]), 0, 10)
    scene.step(window)
    scene.service.clear()
    released.feature = None
    scene.step(window, failed=[released])
    assert scene.service.stats().errors == 1


def test_feature_that_was_released_before_its_first_step_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    released, kept = image(1, (0, 3)), image(2, (5, 8))
    inputs = Inputs([released, kept])
    scene.step(Window(inputs, 9, 2))  # makes the items, and needs none
    inputs.mm_items[0].feature = None  # type: ignore[union-attr]
    scene.step(Window(inputs, 0, 10), failed=[released])
    assert scene.model.num_encoded == 1


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))]
)
def test_copied_request_gives_the_same_rows(monkeypatch: pytest.MonkeyPatch, duplicate: Any) -> None:
    scene = Scene(monkeypatch)
    inputs = Inputs([image(1, (0, 3))])
    remember_tenant(request(inputs, "a"))
    scene.step(Window(inputs, 0, 6))
    other = duplicate(inputs)
    scene.step(Window(other, 0, 6))
    other.mm_items = [image(2, (1, 2))]
    scene.step(Window(other, 0, 6), Window(inputs, 0, 6))
    assert scene.model.num_encoded == 2


def test_pickle_of_a_request_has_neither_items_nor_rows_of_vitcache(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs([image(1, (0, 3))])
    before = len(pickle.dumps(inputs))
    Scene(monkeypatch).step(Window(inputs, 0, 6))
    loaded = pickle.loads(pickle.dumps(inputs))
    [mark] = [value for value in vars(loaded).values() if isinstance(value, RequestItems)]
    assert pickle.dumps(mark) == pickle.dumps(RequestItems())
    del vars(loaded.mm_items[0])["_vitcache"], vars(loaded)["_vitcache"]
    assert len(pickle.dumps(loaded)) == before


def test_items_die_with_their_request_without_a_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    item = image(1, (0, 3))
    seen = weakref.ref(item)
    scene.step(Window(Inputs([item]), 0, 6))
    scene.model.calls.clear()
    gc.disable()
    try:
        del item
        assert seen() is None
    finally:
        gc.enable()


def test_precomputed_rows_on_another_device_are_copied_for_chunks_that_need_them() -> None:
    rows = torch.ones(4, HIDDEN)
    inputs = Inputs([image(1, (0, 3), feature=None, precomputed_embeddings=rows), image(2, (6, 8))])
    elsewhere = factory("meta")
    needed = read(inputs, 0, 4, elsewhere)
    assert needed[0].rows is not None
    assert needed[0].rows.device.type == "meta"
    other = read(inputs, 4, 9, elsewhere)
    assert (other[0].rows, other[0].spans) == (None, ())
    assert other[1].num_rows == 3
    again = read(inputs, 0, 4, elsewhere)
    assert again is not needed
    assert again[0].num_rows == 4


@pytest.mark.parametrize("kept", [True, False], ids=["request lives", "request is released"])
def test_precomputed_rows_that_sglang_moves_away_are_freed(
    monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """As SGLang does behind each step: on a GPU it would not win memory otherwise."""
    scene = Scene(monkeypatch)
    rows = torch.ones(4, HIDDEN)
    inputs = Inputs([image(1, (0, 3), feature=None, precomputed_embeddings=rows), image(2, (5, 6))])
    scene.step(Window(inputs, 0, 3))
    inputs.mm_items[0].precomputed_embeddings = rows.clone() if kept else None  # type: ignore[union-attr]
    seen = weakref.ref(rows)
    del rows
    assert seen() is None
    if kept:
        scene.step(Window(inputs, 3, 4))


def test_random_key_of_an_item_stays_if_its_tenant_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank may still be unable to hash the item, and would miss where this one finds an entry."""
    scene = Scene(monkeypatch)
    item = image(1, (1, 2), proxy=object())
    for salt in ("one", "two"):
        inputs = Inputs([item])
        remember_tenant(request(inputs, salt))
        scene.step(Window(inputs, 0, 4))
        item.model_specific_data.clear()  # it could be hashed now
    assert scene.model.num_encoded == 1
    assert scene.service.stats().unshared == 1


def test_many_chunks_of_random_requests_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(3)
    scene = Scene(monkeypatch, Model(levels=1), device_bytes=2000, max_rows_per_encode=8)
    requests: list[tuple[Inputs, int]] = []
    for number in range(8):
        token, items = generator.randrange(3), []
        for seed in range(generator.randrange(1, 5)):
            offsets = []
            for _ in range(generator.randrange(1, 3)):
                length = generator.randrange(1, 5)
                offsets.append((token, token + length - 1))
                token += length + generator.randrange(2)
            modality = generator.choice(list(Modality))
            items.append(image(generator.randrange(4) * 10 + seed, *offsets, modality=modality))
        requests.append((Inputs([*items, None] if number % 2 else list(items)), token + 1))
    for _ in range(40):
        windows = []
        for inputs, length in generator.sample(requests, 3):
            start = generator.randrange(length)
            windows.append(Window(inputs, start, generator.randrange(length - start + 1)))
            windows.append(Window(None, 0, generator.randrange(3)))
        scene.step(*windows, padding=generator.randrange(3))
    assert scene.service.stats().errors == 0
    assert len(list(itertools.chain(*scene.model.calls))) == scene.service.stats().encodes
