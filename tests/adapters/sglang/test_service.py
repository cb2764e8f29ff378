"""`Service`: which steps vitcache builds, with which cache, and the counts of the process."""

from __future__ import annotations

import gc
import logging
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_fakes.model import HIDDEN, VOCABULARY, Model, Table
from sglang_fakes.requests import Inputs, Modality, image
from sglang_fakes.scene import Scene, Window, token_ids

import vitcache.adapters.sglang
from vitcache.adapters.sglang import service
from vitcache.adapters.sglang.counts import SglangStats
from vitcache.adapters.sglang.model_memory import UNRESERVED_BYTES
from vitcache.adapters.sglang.options import VARIABLE
from vitcache.adapters.sglang.stock_cache import StockCache


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def window(seed: int = 1) -> Window:
    return Window(Inputs([image(seed, (1, 4))]), 0, 6)


def leaves(scene: Scene, *windows: Window, **options: Any) -> bool:
    """Whether the step is left to SGLang, and the ids are as they were."""
    ids = token_ids(windows)
    before = ids.clone()
    found = scene.embed(*windows, ids=ids, **options)
    if found is None:
        assert torch.equal(ids, before)
    return found is None


def test_disabled_steps_are_left_and_the_next_ones_are_built(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.step(window())
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    assert leaves(scene, window())
    monkeypatch.setenv("VITCACHE_DISABLE", "0")
    scene.step(window())
    stats = scene.service.stats()
    assert (stats.originals, stats.steps, stats.encodes) == ({"disabled": 1}, 2, 1)


def test_step_of_unknown_positions_is_left(scene: Scene) -> None:
    found = scene.service.embed(
        *([window().inputs], [0], [6], torch.zeros(9, dtype=torch.long), scene.table, scene.model),
        *(None, None, {}),
        batch=None,
    )
    assert found is None
    assert scene.service.stats().originals == {"positions": 1}


def test_step_without_a_batch_is_built_if_its_lengths_add_up(scene: Scene) -> None:
    made = window()
    found = scene.service.embed(
        *([made.inputs], [0], [6], torch.zeros(6, dtype=torch.long), scene.table, scene.model),
        *(None, None, {}),
        batch=None,
    )
    wanted, _ = scene.truth((made,), (), (), 0, {})
    assert found is not None
    assert torch.equal(found[0][1:5], wanted[1:5])


class OddTable(Table):
    """Text rows of another form."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form

    def forward(self, ids: Any) -> Any:
        return self.form(super().forward(ids))


FORMS = {
    "three dimensions": lambda rows: rows[None],
    "float64": lambda rows: rows.double(),
    "tuple": lambda rows: (rows,),
    "none": lambda rows: None,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_step_with_text_rows_of_another_form_is_left(scene: Scene, form: Any) -> None:
    assert leaves(scene, window(), table=OddTable(form))
    assert scene.service.stats().originals == {"text_rows": 1}


STRIDES = {
    "columns": lambda rows: rows.t().contiguous().t(),
    "part of wider rows": lambda rows: rows.repeat(1, 2)[:, :HIDDEN],
    "one row for all tokens": lambda rows: rows[:1].expand(len(rows), -1),
}


@pytest.mark.parametrize("form", STRIDES.values(), ids=STRIDES)
def test_text_rows_of_each_stride_are_placed(scene: Scene, form: Any) -> None:
    ids = torch.zeros(6, dtype=torch.long)
    wanted, _ = scene.embed(window(), ids=ids.clone())
    for _ in range(2):
        rows, _ = scene.embed(window(), ids=ids.clone(), table=OddTable(form))
        assert torch.equal(rows, wanted)
    assert scene.service.stats().originals == {}


def test_model_without_levels_gets_the_levels_tensor_without_columns(scene: Scene) -> None:
    """A model can name its modalities with deepstack, and have no levels: SGLang reads the tensor."""
    for use_deepstack in ({Modality.IMAGE: True}, {Modality.IMAGE: False}):
        rows, info = scene.service.embed(  # type: ignore[misc]
            *([window().inputs], [0], [6], torch.zeros(6, dtype=torch.long), scene.table, scene.model),
            *(None, None, use_deepstack),
            batch=None,
        )
        wanted, _ = scene.embed(window(), ids=torch.zeros(6, dtype=torch.long))
        assert torch.equal(rows, wanted)
        assert info["input_deepstack_embeds"].shape == (6, 0)


def test_step_on_another_device_is_left(scene: Scene) -> None:
    assert leaves(scene, window(), table=OddTable(lambda rows: rows.to("meta")))
    assert scene.service.stats().originals == {"device": 1}


def test_text_rows_with_a_gradient_are_built_without_one(scene: Scene) -> None:
    rows, _ = scene.embed(window(), ids=torch.zeros(6, dtype=torch.long))
    assert scene.table.weight.requires_grad
    assert not rows.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_step_is_built_in_each_mode_of_torch(scene: Scene, mode: Any) -> None:
    with mode():
        scene.step(window())
    scene.step(window())


def test_ids_are_clamped_in_place_and_may_be_negative(scene: Scene) -> None:
    ids = torch.tensor([-5, 2**62, 2**62 + 1, VOCABULARY, 3])
    rows, _ = scene.embed(Window(Inputs([image(1, (1, 2))]), 0, 5), ids=ids)
    assert ids.tolist() == [0, VOCABULARY - 1, VOCABULARY - 1, VOCABULARY - 1, 3]
    assert torch.equal(rows[0], scene.table.weight.detach()[0])


def test_videos_of_a_model_that_prunes_are_left_and_images_are_built(scene: Scene) -> None:
    scene.model.evs_enabled = True  # type: ignore[attr-defined]
    scene.step(Window(Inputs([image(1, (1, 2)), None]), 0, 5))
    video = image(2, (1, 2), modality=Modality.VIDEO)
    assert leaves(scene, Window(Inputs([None, video]), 0, 5))
    assert scene.service.stats().originals == {"pruned_video": 1}


def test_step_in_which_an_encoder_prunes_is_left_without_an_error(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.model.form = lambda rows: SimpleNamespace(num_tokens_per_frame=[1], embedding=rows)
    assert leaves(scene, window(), window(2))
    stats = scene.service.stats()
    assert (stats.originals, stats.errors, stats.steps) == ({"pruned_video": 1}, 0, 0)
    assert all(record.levelno < logging.ERROR for record in caplog.records)
    scene.model.form = list
    scene.step(window())


def test_step_that_is_left_gives_sglangs_cache_its_size(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    service.STOCK_CACHE.make(sizes.append, 500)
    scene.step(window())
    assert sizes == [0]
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    leaves(scene, window())
    leaves(scene, window())
    assert sizes == [0, 500]


@pytest.mark.parametrize(
    ("reserved", "options", "expected"),
    [
        (None, {}, UNRESERVED_BYTES),
        (0, {}, UNRESERVED_BYTES),
        (1 << 20, {}, 1 << 20),
        (1 << 20, {"device_bytes": 4096}, 4096),
        (0, {"device_bytes": "8 KiB"}, 8192),
    ],
)
def test_device_tier_has_the_size_of_the_option_or_of_sglang(
    monkeypatch: pytest.MonkeyPatch, reserved: int | None, options: dict[str, Any], expected: int
) -> None:
    scene = Scene(monkeypatch, **options)
    if reserved is not None:
        service.STOCK_CACHE.make(lambda size: None, reserved)
    scene.step(window())
    [cache] = scene.service.stats().caches
    assert cache.device_capacity_bytes == expected


def test_cache_is_made_anew_after_sglang_has_made_its_own(scene: Scene) -> None:
    service.STOCK_CACHE.make(lambda size: None, 4096)
    scene.step(window())
    service.STOCK_CACHE.make(lambda size: None, 8192)
    scene.step(window())
    [cache] = scene.service.stats().caches
    assert cache.device_capacity_bytes == 8192
    assert scene.model.num_encoded == 2


def test_clear_and_epochs_make_rows_unreachable(scene: Scene) -> None:
    made = window()
    for forget in (scene.service.clear, scene.service.advance_epoch):
        scene.step(made)
        scene.step(made)
        before = scene.model.num_encoded
        forget()
        scene.step(made)
        assert scene.model.num_encoded == before + 1
    assert scene.service.stats().errors == 0


def test_rows_are_those_of_the_new_weights_after_an_epoch(scene: Scene) -> None:
    made = window()
    scene.step(made)
    scene.model.form = lambda rows: [part * 2 for part in rows]
    scene.service.advance_epoch()
    rows, _ = scene.embed(made, ids=token_ids((made,)))
    wanted, _ = scene.truth((made,), (), (), 0, {})
    assert torch.equal(rows[1:5], wanted[1:5] * 2)


def test_service_without_a_step_is_cleared(scene: Scene) -> None:
    scene.service.clear()
    scene.service.advance_epoch()
    assert scene.service.stats() == SglangStats()


def test_each_model_has_a_cache_of_its_own_and_a_collected_one_is_closed(scene: Scene) -> None:
    made, first = window(), scene.model
    scene.step(made)
    scene.model = Model(levels=1)
    scene.step(made)
    assert len(scene.service.stats().caches) == 2
    del first
    for _ in range(5):
        scene.model = Model()
        gc.collect()
        scene.step(made)
        assert scene.model.num_encoded == 1
        assert len(scene.service.stats().caches) == 1


class Draft(Model):
    """A class of its own, so its rows have a namespace of their own."""


def test_models_serve_one_request_in_turns(scene: Scene) -> None:
    made, models = window(), [scene.model, Model(levels=1), Draft()]
    for model in models * 3:
        scene.model = model
        scene.step(made)
    assert [model.num_encoded for model in models] == [1, 1, 1]
    assert scene.service.stats().errors == 0


def test_encoders_that_are_made_in_each_step_share_one_cache(scene: Scene) -> None:
    """Some models pass closures, and no model."""
    encoded: list[int] = []

    def step(made: Window) -> None:
        def encode(items: list[Any]) -> Any:
            encoded.append(len(items))
            return scene.model.encode(items)

        found = scene.service.embed(
            *([made.inputs], [0], [6], token_ids((made,)), scene.table, None),
            *({Modality.IMAGE: encode}, None, {}),
            batch=None,
        )
        wanted, _ = scene.truth((made,), (), (), 0, {})
        assert found is not None
        assert torch.equal(found[0], wanted)

    for seed in (1, 1, 2, 1):
        step(window(seed))
    assert encoded == [1, 1]


def test_options_are_read_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, device_bytes=4096)
    scene.step(window())
    monkeypatch.setenv(VARIABLE, "{")
    scene.model = Model(levels=1)
    scene.step(window())
    assert [cache.device_capacity_bytes for cache in scene.service.stats().caches] == [4096]


def test_wrong_options_raise_in_the_first_step(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, '{"sizes": 3}')
    with pytest.raises(ValueError, match="sizes"):
        scene.step(window())


def test_statistics_can_be_read_by_any_thread_while_steps_run(scene: Scene) -> None:
    found: list[SglangStats] = []
    errors: list[BaseException] = []
    is_over = Event()

    def read() -> None:
        try:
            while not is_over.is_set():
                found.append(scene.service.stats())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=read)
    thread.start()
    try:
        for seed in range(60):
            if seed % 4 == 0:
                service.STOCK_CACHE.make(lambda size: None, 4096 + seed)  # closes the cache
            scene.step(window(seed))
        while not found:
            assert thread.is_alive()
    finally:
        is_over.set()
        thread.join()
    assert errors == []
    steps = [stats.steps for stats in found]
    assert steps == sorted(steps)
    assert scene.service.stats().encodes == 60


def test_public_statistics_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = vitcache.adapters.sglang.stats()
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    monkeypatch.setattr(service, "STOCK_CACHE", StockCache())
    service.SERVICE.embed(*([], [], [], torch.zeros(0), None, None), *(None, None, {}), batch=None)
    after = vitcache.adapters.sglang.stats()
    assert after.originals.get("disabled", 0) == before.originals.get("disabled", 0) + 1
    assert isinstance(after, SglangStats)


def test_rows_have_the_width_of_the_text(scene: Scene) -> None:
    rows, info = scene.embed(window(), ids=token_ids((window(),)))
    assert rows.shape == (6, HIDDEN)
    assert info == {}
