"""How the plug-in calls the encoders of a model: closures, features that the model moves, waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from sglang.srt.managers import mm_schedule
from sglang.srt.managers.schedule_batch import Modality
from sglang_scene.comparison import both, play
from sglang_scene.language_model import LanguageModel
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import Prompt, Window, images, make_item
from sglang_scene.steps import run_step
from sglang_scene.tower import Tower
from sglang_scene.truth import step_rows

from vitcache.adapters.sglang import stats

Steps = Iterator[Sequence[Window]]
MOVERS = (
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "KimiK25ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
)


def test_closures_of_each_forward_pass_are_the_encoders_of_that_step() -> None:
    made: list[int] = []

    def functions(tower: Tower) -> dict[Modality, Any]:
        number = len(made)
        made.append(0)

        def encode(items: list[Any]) -> Any:
            made[number] += len(items)
            return tower.get_image_feature(items)

        return {Modality.IMAGE: encode, Modality.AUDIO: encode}

    def steps() -> Steps:
        items = [make_item(2, (2, 5)), make_item(3, (7, 9), modality=Modality.AUDIO)]
        for k in (1, 2, 2):
            yield [images(k).window(), Prompt(12, items[: k - 1] or [make_item(4, (1, 2))]).window()]

    both(steps, functions=functions)
    assert made == [2, 2, 0] * 2  # SGLang alone, then the plug-in


def test_modalities_of_a_step_reach_their_own_encoders() -> None:
    class Encoders(Tower):
        def get_video_feature(self, items: list[Any]) -> Any:
            assert all(item.is_video() for item in items)
            return self.get_image_feature(items)

        def get_audio_feature(self, items: list[Any]) -> Any:
            assert all(item.is_audio() for item in items)
            return self.get_image_feature(items)

    def steps() -> Steps:
        modalities = [Modality.AUDIO, Modality.IMAGE, Modality.VIDEO, Modality.IMAGE, Modality.AUDIO]
        items = [make_item(k, (5 * k, 5 * k + 2), modality=each) for k, each in enumerate(modalities)]
        yield [Prompt(25, items).window()]

    for form in ("tensor", "list", "3-D"):
        theirs, ours = both(steps, lambda form=form: Encoders(2, form))
        assert ours.encodes == theirs.encodes == [5]


@pytest.mark.parametrize("name", MOVERS)
def test_models_that_move_features_get_the_very_item_and_feature(name: str) -> None:
    tower = type(
        name, (Tower,), {"get_image_feature": get_image_feature, "get_video_feature": get_video_feature}
    )()
    prompt = Prompt(20, [make_item(0, (2, 5)), make_item(1, (8, 12), modality=Modality.VIDEO)])
    features = [item.feature for item in prompt.items]
    play(plugged(), lambda: iter(prompt.chunks(20)), tower)
    found = [item for batch in tower.batches for item in batch]
    assert all(item is source for item, source in zip(found, prompt.items, strict=True))
    assert all(item.feature is feature for item, feature in zip(found, features, strict=True))


def get_image_feature(tower: Tower, items: list[Any]) -> Any:
    return Tower.get_image_feature(tower, items)


def get_video_feature(tower: Tower, items: list[Any]) -> Any:
    return Tower.get_image_feature(tower, items)


def test_features_that_are_no_tensors_stay_the_very_object() -> None:
    item = make_item(0, (2, 5))
    item.feature = item.feature.numpy()
    feature = item.feature
    tower = Tower()
    play(plugged(), lambda: iter(Prompt(8, [item]).chunks(8)), tower)
    assert tower.batches[0][0].feature is feature


class Event:
    """Stands in for `host_offload_event`: counts the waits of the host, and of a stream."""

    def __init__(self, tower: Tower) -> None:
        self.tower = tower
        self.encodes_at_waits: list[int] = []
        self.lock = threading.Lock()

    def synchronize(self) -> None:
        with self.lock:
            self.encodes_at_waits.append(self.tower.num_encodes)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("kind", [Tower, type(MOVERS[0], (Tower,), {"get_image_feature": get_image_feature})])
def test_offload_event_is_waited_for_before_a_miss_and_not_on_a_hit(
    kind: type[Tower], trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = kind()
    event = Event(tower)
    monkeypatch.setattr(mm_schedule, "host_offload_event", event)
    waits: list[int] = []

    def steps() -> Steps:
        prompt = images(2)
        for windows in [*prompt.chunks(20, 25), *prompt.chunks(45)]:
            yield windows
            waits.append(len(event.encodes_at_waits))

    ours = play(plugged(trust_engine_hash=trusted), steps, tower)
    assert ours.is_right
    # Each image is encoded after a wait, and a step of hits does not wait.
    assert set(event.encodes_at_waits) == {0, 1}
    assert waits[2] == waits[1]


def test_offload_event_is_waited_for_before_precomputed_rows_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def steps() -> Steps:
        item = make_item(0, (2, 5))
        item.precomputed_embeddings, item.feature = Tower().rows(item), None
        yield [Prompt(8, [item]).window()]

    for side in (stock(), plugged()):
        tower = Tower()
        event = Event(tower)
        monkeypatch.setattr(mm_schedule, "host_offload_event", event)
        assert play(side, steps, tower).is_right
        assert event.encodes_at_waits


def test_two_models_of_a_process_use_their_own_rows_of_the_same_requests() -> None:
    model, towers = LanguageModel(), [Tower(2), Tower(2), Tower()]
    towers[1].weight *= -1
    prompt = Prompt(16, [make_item(0, (2, 5)), make_item(1, (8, 11), modality=Modality.AUDIO)])
    with plugged(), torch.no_grad():
        for _ in range(2):
            for tower in towers:
                windows = [prompt.window()]
                rows = run_step(windows, model, tower)
                assert torch.equal(rows, step_rows(windows, model, tower))
        assert len(stats().caches) == len(towers)
    assert [tower.num_encodes for tower in towers] == [2, 2, 2]


def test_cache_of_a_model_that_was_collected_is_closed() -> None:
    model = LanguageModel()
    with plugged(), torch.no_grad():
        for _ in range(3):
            tower = Tower()
            windows = [images(2).window()]
            rows = run_step(windows, model, tower)
            assert torch.equal(rows, step_rows(windows, model, tower))
            del tower
        assert len(stats().caches) == 1
