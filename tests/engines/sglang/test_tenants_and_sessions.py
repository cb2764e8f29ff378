"""Items that outlive a step: chunks, turns of a session, tenants. An item is hashed once."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from sglang.srt.managers.schedule_batch import MultimodalInputs, Req
from sglang_scene.comparison import play
from sglang_scene.plugin import plugged
from sglang_scene.prompts import Prompt, Window, images, make_item
from sglang_scene.tower import Tower

from vitcache import KeyThreads

Steps = Iterator[Sequence[Window]]


class Request:
    """The fields of SGLang's `Req` that its media have. Its methods are those of `Req`."""

    mm_token_counts_ready = False
    _extend_session_image_inputs = Req._extend_session_image_inputs

    def __init__(self, *, in_session: bool = False, inputs: Any = None, **tenant: str | None) -> None:
        self.session = object() if in_session else None
        self.multimodal_inputs = inputs
        self.cache_salt, self.extra_key = tenant.get("cache_salt"), tenant.get("extra_key")
        self._session_mm_items: list[Any] = []
        self.full_untruncated_fill_ids = self.origin_input_ids = array("q")

    def extend(self, items: Sequence[Any]) -> MultimodalInputs:
        Req.extend_image_inputs(self, MultimodalInputs(mm_items=list(items)))
        return self.multimodal_inputs


def prompt_of(inputs: MultimodalInputs, num_tokens: int) -> Prompt:
    prompt = Prompt(num_tokens, inputs.mm_items)
    prompt.inputs = inputs
    return prompt


class Hashes:
    """Counts the features that `KeyThreads` loads and hashes, and their threads."""

    def __init__(self) -> None:
        self.number = 0
        self.threads: set[int] = set()

    def watch(self, load: Any) -> Any:
        def watched() -> Any:
            self.number += 1
            self.threads.add(threading.get_ident())
            return load()

        return watched


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> Hashes:
    found = Hashes()
    submit_many = KeyThreads.submit_many

    def submit(threads: KeyThreads, features: Any, **options: Any) -> Any:
        return submit_many(threads, [found.watch(feature) for feature in features], **options)

    monkeypatch.setattr(KeyThreads, "submit_many", submit)
    return found


def test_items_are_hashed_once_over_chunks_on_other_threads(hashes: Hashes) -> None:
    def steps() -> Steps:
        prompt = images(4)
        yield from prompt.chunks(20, 20, 20, 25)
        yield from prompt.chunks(85)  # SGLang has retracted the request

    ours = play(plugged(), steps)
    assert ours.is_right
    assert ours.encodes == [1, 2, 3, 4, 4]
    assert hashes.number == 4
    assert threading.get_ident() not in hashes.threads


def test_trusted_hashes_and_precomputed_rows_are_not_hashed(hashes: Hashes) -> None:
    def steps() -> Steps:
        yield [images(3).window()]

    ours = play(plugged(trust_engine_hash=True), steps)
    assert ours.is_right
    assert hashes.number == 0


@pytest.mark.parametrize("way", ["merge", "session", "replace"])
def test_turns_that_pass_items_on_hash_only_the_new_item(hashes: Hashes, way: str) -> None:
    def turns() -> Steps:
        items = [make_item(k, (5 + 20 * k, 14 + 20 * k)) for k in range(4)]
        inputs = None
        for k in range(4):
            if way == "replace":
                inputs = dataclasses.replace(inputs or MultimodalInputs(mm_items=[]), mm_items=items[: k + 1])
            else:
                request = Request(in_session=way == "session", inputs=inputs)
                inputs = request.extend(items[k : k + 1])
            yield [prompt_of(inputs, 20 * k + 25).window()]

    ours = play(plugged(), turns)
    assert ours.is_right
    assert ours.encodes == [1, 2, 3, 4]
    assert hashes.number == 4


TENANTS = [
    {"cache_salt": "a"},
    {"cache_salt": "b"},
    {"extra_key": "a"},
    {"cache_salt": "a", "extra_key": "a"},
]


@pytest.mark.parametrize("trusted", [False, True])
def test_each_tenant_encodes_an_image_and_later_requests_of_it_do_not(trusted: bool) -> None:
    def steps() -> Steps:
        for _ in range(2):
            for tenant in (*TENANTS, {}):
                yield [prompt_of(Request(**tenant).extend(images(1).items), 25).window()]

    ours = play(plugged(trust_engine_hash=trusted), steps)
    assert ours.is_right
    assert ours.encodes == [1, 2, 3, 4, 5, 5, 5, 5, 5, 5]


def test_tenants_of_one_batch_do_not_share_rows() -> None:
    def steps() -> Steps:
        yield [prompt_of(Request(**tenant).extend(images(1).items), 25).window() for tenant in (*TENANTS, {})]

    ours = play(plugged(), steps)
    assert ours.is_right
    assert ours.encodes == [5]


def test_session_that_changes_its_tenant_encodes_for_the_new_one() -> None:
    def steps() -> Steps:
        request = Request(in_session=True, cache_salt="a")
        inputs = request.extend(images(1).items)
        yield [prompt_of(inputs, 25).window()]
        later = Request(in_session=True, inputs=inputs, cache_salt="b")
        yield [prompt_of(later.extend([make_item(1, (25, 34))]), 45).window()]

    ours = play(plugged(), steps)
    assert ours.is_right
    assert ours.encodes == [1, 3]


def test_copy_and_pickle_of_a_request_carry_no_state_of_the_plugin() -> None:
    def steps() -> Steps:
        prompt = images(2)
        yield [prompt.window()]
        copied = pickle.loads(pickle.dumps(prompt.inputs))
        yield [prompt_of(copied, len(prompt)).window()]

    ours = play(plugged(), steps)
    assert ours.is_right
    assert ours.encodes == [2, 2]


def test_features_released_after_the_first_step_are_not_needed_on_hits() -> None:
    def steps() -> Steps:
        prompt = images(2)
        [first, second] = prompt.chunks(30, 15)
        yield first
        features = [item.feature for item in prompt.items]
        prompt.inputs.release_features()
        for item, feature in zip(prompt.items, features, strict=True):
            assert item.feature is None
            item.__dict__["truth"] = feature
        yield second

    class KeptTower(Tower):
        """Reads the truth of a released feature."""

        @staticmethod
        def feature(item: Any) -> torch.Tensor:
            return item.__dict__.get("truth", item.feature)

    ours = play(plugged(), steps, KeptTower())
    assert ours.is_right
    assert ours.encodes == [2, 2]
