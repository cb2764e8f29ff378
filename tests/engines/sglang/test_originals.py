"""Steps that SGLang's own function computes: same result as without the plug-in, counted, logged once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from sglang.srt.managers import mm_schedule, mm_utils
from sglang.srt.managers.schedule_batch import Modality
from sglang.srt.multimodal.evs import EVSEmbeddingResult
from sglang_scene.comparison import play
from sglang_scene.language_model import HIDDEN, LanguageModel
from sglang_scene.plugin import DEFAULT_BYTES, plugged, stock
from sglang_scene.prompts import Prompt, Window, images, make_item
from sglang_scene.steps import run_step
from sglang_scene.tower import Tower

from vitcache.adapters.sglang import stats
from vitcache.adapters.sglang.hooks import around_flush, around_update

Steps = Iterator[Sequence[Window]]
FRAMES = [(2, 5), (8, 11)]  # 4 rows each before pruning


class PruningTower(Tower):
    """Prunes a video of 2 frames of 4 rows: the frames keep 5 and 3 rows of the first 8 that it computes."""

    def get_video_feature(self, items: list[Any]) -> Any:
        return EVSEmbeddingResult(embedding=self.get_image_feature(items), num_tokens_per_frame=[5, 3])


class EvsTower(PruningTower):
    evs_enabled = True


def video() -> Prompt:
    item = make_item(0, *FRAMES, modality=Modality.VIDEO)
    prompt = Prompt(14, [item])
    item.pre_chunked_input_ids = prompt.ids.tolist()
    return prompt


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "SGLang's own embed_mm_inputs" in record.message]


@pytest.mark.parametrize("kind", [EvsTower, PruningTower])
def test_pruned_videos_have_the_rows_of_sglang(kind: type[Tower], caplog: pytest.LogCaptureFixture) -> None:
    def run(side: Any) -> tuple[list[torch.Tensor], Tower, Any]:
        model, tower, found = LanguageModel(), kind(), []
        with side, torch.no_grad():
            found += [run_step([video().window()], model, tower) for _ in range(3)]
            assert mm_schedule.embedding_cache.max_size == DEFAULT_BYTES
            return found, tower, stats()

    theirs, their_tower, _ = run(stock())
    caplog.clear()
    ours, our_tower, found = run(plugged())
    assert all(torch.equal(*pair) for pair in zip(theirs, ours, strict=True))
    assert found.originals == {"pruned_video": 3}
    assert found.errors == 0
    assert found.steps == 0
    assert len(lines(caplog)) == 1
    assert "EVS" in lines(caplog)[0]
    assert their_tower.num_encodes == 1
    if kind is EvsTower:
        assert our_tower.num_encodes == 1


@pytest.mark.parametrize("event", [around_flush, around_update])
def test_flush_and_update_remove_the_rows_of_pruned_videos(event: Callable[..., Any]) -> None:
    model, tower = LanguageModel(), EvsTower()
    with plugged(), torch.no_grad():
        before = run_step([video().window()], model, tower)
        tower.weight *= -2
        event(lambda: True)
        after = run_step([video().window()], model, tower)
        assert tower.num_encodes == 2
    tower = EvsTower()
    tower.weight *= -2
    with stock(), torch.no_grad():
        assert torch.equal(after, run_step([video().window()], model, tower))
    assert not torch.equal(after, before)


def test_images_of_a_model_that_prunes_videos_are_the_plugins() -> None:
    def steps() -> Steps:
        yield [images(2).window()]
        yield [images(3).window()]

    ours = play(plugged(), steps, EvsTower())
    assert ours.is_right
    assert (ours.encodes, ours.stats.steps, ours.stats.originals) == ([2, 3], 2, {})


def test_steps_of_both_functions_in_turn_are_right_and_keep_the_plugins_rows() -> None:
    model, tower, results = LanguageModel(), EvsTower(), []
    script: list[Callable[[], Prompt]] = [lambda: images(2), video, lambda: images(2), video]
    for side in (stock(), plugged()):
        tower.batches.clear()
        with side, torch.no_grad():
            results.append([run_step([make().window()], model, tower) for make in script])
        assert tower.num_encodes == 3
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("value", ["1", "yes"])
def test_disabled_plugin_gives_the_rows_of_sglang_and_its_cache(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VITCACHE_DISABLE", value)

    def steps() -> Steps:
        for k in (1, 2, 2):
            yield [images(k).window()]
            assert mm_schedule.embedding_cache.max_size == DEFAULT_BYTES

    theirs, ours = (play(side, steps, Tower(1)) for side in (stock(), plugged()))
    assert ours.is_right
    assert all(torch.equal(*pair) for pair in zip(theirs.rows, ours.rows, strict=True))
    assert ours.encodes == theirs.encodes == [1, 2, 2]
    assert (ours.stats.steps, ours.stats.originals, ours.stats.caches) == (0, {"disabled": 3}, ())
    assert len(lines(caplog)) == 1
    assert "VITCACHE_DISABLE" in lines(caplog)[0]


def test_plugin_disabled_while_it_runs_gives_sglang_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps() -> Steps:
        yield [images(2).window()]
        assert mm_schedule.embedding_cache.max_size == 0
        monkeypatch.setenv("VITCACHE_DISABLE", "1")
        yield [images(2).window()]
        yield [images(2).window()]
        assert mm_schedule.embedding_cache.max_size == DEFAULT_BYTES
        monkeypatch.delenv("VITCACHE_DISABLE")
        yield [images(2).window()]

    ours = play(plugged(), steps)
    assert ours.is_right
    assert ours.encodes == [2, 4, 4, 4]
    assert (ours.stats.steps, ours.stats.originals) == (2, {"disabled": 2})


@pytest.mark.parametrize("levels", [0, 2])
def test_unknown_positions_are_left_to_sglang(levels: int, caplog: pytest.LogCaptureFixture) -> None:
    model, tower, results = LanguageModel(), Tower(levels), []
    for side in (stock(), plugged()):
        # One image request of a longer batch, and no `ForwardBatch` that tells where its tokens are.
        prompt = images(2)
        ids = torch.cat([torch.arange(7), prompt.ids])
        with side, torch.no_grad():
            for _ in range(2):
                rows, info = mm_utils.embed_mm_inputs(
                    *([prompt.inputs], [0], [len(prompt)], ids.clone(), model.table, tower),
                    use_deepstack=tower.use_deepstack,
                )
            results.append(torch.cat([rows, *info.values()], dim=1))
            found = stats()
    assert results[1].shape == (len(ids), HIDDEN * (1 + levels))
    assert torch.equal(*results)
    assert found.originals == {"positions": 2}
    assert len(lines(caplog)) == 1


@pytest.mark.parametrize("levels", [0, 2])
def test_text_rows_of_a_dtype_without_a_cache_are_left_to_sglang(
    levels: int, caplog: pytest.LogCaptureFixture
) -> None:
    prompts, tower, results = [images(2), images(2)], Tower(levels), []
    table = LanguageModel().table.double()
    for side in (stock(), plugged()):
        with side, torch.no_grad():
            for prompt in prompts:
                rows, info = mm_utils.embed_mm_inputs(
                    *([prompt.inputs], [0], [len(prompt)], prompt.ids.clone(), table, tower),
                    use_deepstack=tower.use_deepstack,
                )
            results.append(torch.cat([rows, *info.values()], dim=1))
            found = stats()
    assert results[1].dtype == torch.float64
    assert torch.equal(*results)
    assert (found.steps, found.originals) == (0, {"text_rows": 2})
    assert len(lines(caplog)) == 1
