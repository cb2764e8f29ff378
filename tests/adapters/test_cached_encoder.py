"""Calls that bypass the cache, changes of the model, encodes that fail, and towers with offloaded weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from caches import make_cache
from tiny_zoo import ZOO
from torch import Tensor, nn

from vitcache.testing import inspect

pytest.importorskip("transformers")

from attached import (
    GEMMA,
    QWEN3,
    assert_same_bits,
    each_family,
    features,
    image_rows,
    pair,
    plain_kernels,  # noqa: F401
    stock_rows,
)
from tiny_models import FAMILIES, Call, TinyFamily, one_at_a_time, stock_method

from vitcache import PinnedRing
from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.session import Session
from vitcache.adapters.transformers import attach
from vitcache.pipeline.feature_mover import FeatureMover

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


@pytest.mark.parametrize(
    "options",
    [
        {"return_dict": False},
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"image_cu_seqlens": torch.tensor([0, 16, 40], dtype=torch.int32)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_call_for_a_tuple_or_tower_states_bypasses_the_cache(options: Call) -> None:
    model = QWEN3.model()
    attachment = attach(model)
    call = QWEN3.call(0, 1)
    for _ in range(2):
        with torch.no_grad():
            ours = model.model.get_image_features(**call, **options)
            theirs = stock_method(model, "image")(**call, **options)
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for a, b in zip(ours[1], theirs[1], strict=True):
            assert torch.equal(a, b)
        assert "output_hidden_states" not in options or len(ours.hidden_states) == 4
    assert attachment.stats() == AttachStats(bypassed=2)
    assert len(attachment.cache) == 0


def test_config_without_return_dict_bypasses_the_cache() -> None:
    model = GEMMA.model()
    attachment = attach(model)
    model.model.config.return_dict = False
    with torch.no_grad():
        assert isinstance(model.model.get_image_features(**GEMMA.call(0)), tuple)
    assert attachment.stats() == AttachStats(bypassed=1)


@pytest.mark.parametrize("change", [{"image_grid_thw": None}, {"pixel_values": [torch.zeros(16, 96)]}])
def test_argument_of_an_unknown_type_bypasses_the_cache(change: Call) -> None:
    model = QWEN3.model()
    attachment = attach(model)
    call = QWEN3.call(0) | change
    with pytest.raises(AttributeError) as theirs:
        stock_method(model, "image")(**call)
    with pytest.raises(AttributeError) as ours:
        image_rows(model, call)
    assert str(ours.value) == str(theirs.value)
    assert attachment.stats() == AttachStats(bypassed=1)


def test_call_in_grad_mode_gives_the_stock_gradients() -> None:
    model, stock = QWEN3.model(), QWEN3.model()
    attachment = attach(model)
    prompt = QWEN3.prompt(stock, 0, 1)
    with torch.no_grad():
        model(**prompt)
    for each in (model, stock):
        each(**prompt).logits.square().mean().backward()
    for (name, ours), theirs in zip(model.named_parameters(), stock.parameters(), strict=True):
        assert theirs.grad is not None, name
        assert torch.equal(ours.grad, theirs.grad)
    assert attachment.stats() == AttachStats(encoded=2, bypassed=1)


@pytest.mark.parametrize("part", ["model", "visual"])
def test_call_after_training_does_not_hit_earlier_entries(part: str) -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model, namespace="shared")
    image_rows(model, call)
    trained = model if part == "model" else model.model.visual
    trained.train()
    model.get_image_features(**call).pooler_output[0].sum().backward()
    torch.optim.SGD(model.model.visual.parameters(), lr=1.0).step()
    trained.eval()
    assert torch.equal(image_rows(model, call), stock_rows(model, call))
    assert torch.equal(image_rows(model, call), stock_rows(model, call))
    assert attachment.stats() == AttachStats(encoded=2, hits=1, bypassed=1)


def step_of_the_projector(model: nn.Module) -> None:
    """Step an optimizer in evaluation mode. The call in grad mode bypasses the cache."""
    model.get_image_features(**GEMMA.call(0)).pooler_output.sum().backward()
    torch.optim.SGD(model.model.multi_modal_projector.parameters(), lr=1.0).step()


def load(model: nn.Module, **options: Any) -> None:
    model.load_state_dict(GEMMA.model(seed=1).state_dict(), **options)


def swap_the_tower(model: nn.Module) -> None:
    model.model.vision_tower = GEMMA.model(seed=1).model.vision_tower


def fill_a_buffer(model: nn.Module) -> None:
    model.model.vision_tower.register_buffer("extra", torch.zeros(2))


CHANGES: list[Callable[[nn.Module], Any]] = [
    step_of_the_projector,
    load,
    lambda model: load(model, assign=True),
    swap_the_tower,
    fill_a_buffer,
    lambda model: model.set_attn_implementation("eager"),
    lambda model: model.set_attn_implementation({"vision_config": "eager"}),
]


@pytest.mark.parametrize("namespace", [None, "shared"])
@pytest.mark.parametrize("change", CHANGES)
def test_call_after_a_change_of_the_encoder_does_not_hit_earlier_entries(
    change: Callable[[nn.Module], Any], namespace: str | None
) -> None:
    model, call = GEMMA.model(), GEMMA.call(0)
    attachment = attach(model, namespace=namespace)
    for _ in range(2):
        image_rows(model, call)
    change(model)
    for _ in range(2):
        assert torch.equal(image_rows(model, call), stock_rows(model, call).flatten(0, -2))
    assert (attachment.stats().encoded, attachment.stats().hits) == (2, 2)


def test_call_after_a_change_of_the_language_model_hits() -> None:
    model, call = GEMMA.model(), GEMMA.call(0)
    attachment = attach(model)
    image_rows(model, call)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            parameter.add_(1)
    image_rows(model, call)
    assert attachment.stats() == AttachStats(encoded=1, hits=1)


def test_optimizer_step_after_an_evaluation_during_training_is_noticed() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model)
    optimizer = torch.optim.SGD(model.model.visual.parameters(), lr=1.0)
    model.train()
    loss = model.get_image_features(**call).pooler_output[0].sum()
    model.eval()
    before = image_rows(model, call)
    loss.backward()
    optimizer.step()
    after = image_rows(model, call)
    assert torch.equal(after, stock_rows(model, call))
    assert not torch.equal(after, before)
    assert attachment.stats() == AttachStats(encoded=2, bypassed=1)


def test_change_of_one_model_ends_the_sharing_of_its_attachment_only() -> None:
    cache, call = make_cache(width=QWEN3.row_width), QWEN3.call(0)
    models = [QWEN3.model() for _ in range(3)]
    first, second = (attach(model, cache, namespace="seed 0") for model in models[:2])
    for model in models[:2]:
        image_rows(model, call)
    models[0].load_state_dict(QWEN3.model(seed=1).state_dict())
    for model in models[:2]:
        assert torch.equal(image_rows(model, call), stock_rows(model, call))
    assert (first.stats().encoded, second.stats()) == (2, AttachStats(encoded=1, hits=1))
    third = attach(models[2], cache, namespace="seed 0")
    image_rows(models[2], QWEN3.call(1))
    assert torch.equal(image_rows(models[2], call), stock_rows(models[2], call))
    assert third.stats() == AttachStats(encoded=1, hits=1)


def test_tower_of_inference_tensors_is_cached_and_its_replacement_noticed() -> None:
    with torch.inference_mode():
        model, other = GEMMA.model(), GEMMA.model(seed=1)
    call = GEMMA.call(0)
    attachment = attach(model)
    for tower in (model.model.vision_tower, other.model.vision_tower):
        model.model.vision_tower = tower
        for _ in range(2):
            assert torch.equal(image_rows(model, call), stock_rows(model, call).flatten(0, -2))
    assert attachment.stats() == AttachStats(encoded=2, hits=2)


def test_advance_epoch_after_a_write_through_data_drops_the_outdated_entry() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model)
    before = image_rows(model, call)
    for parameter in model.model.visual.parameters():
        parameter.data.mul_(0.5)
    assert torch.equal(image_rows(model, call), before)
    attachment.cache.advance_epoch()
    assert torch.equal(image_rows(model, call), stock_rows(model, call))
    assert attachment.stats().encoded == 2


def test_encode_begun_before_advance_epoch_is_returned_and_not_cached() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model)

    def change_weights(*_: Any) -> None:
        hook.remove()
        for parameter in model.model.visual.parameters():
            parameter.data.mul_(0.5)
        attachment.cache.advance_epoch()

    before = stock_rows(model, call)
    hook = model.model.visual.register_forward_hook(change_weights)
    assert torch.equal(image_rows(model, call), before)
    assert len(attachment.cache) == 0
    after = stock_rows(model, call)
    assert not torch.equal(after, before)
    for _ in range(2):
        assert torch.equal(image_rows(model, call), after)
    assert attachment.stats() == AttachStats(encoded=2, hits=1)


@pytest.mark.parametrize("items", [3, torch.tensor(3)], ids=["int", "tensor"])
def test_key_ignores_arguments_of_the_loss(items: Any) -> None:
    model, call = GEMMA.model(), GEMMA.call(0)
    attachment = attach(model)
    image_rows(model, call)
    for options in ({"num_items_in_batch": items}, {"output_router_logits": True}, {"use_cache": False}):
        assert torch.equal(image_rows(model, call, **options), image_rows(model, call))
    assert attachment.stats() == AttachStats(encoded=1, hits=6)


def test_key_includes_an_argument_that_the_tower_may_use() -> None:
    model = GEMMA.model()
    attachment = attach(model)
    for options in ({}, {"interpolate_pos_encoding": True}):
        for _ in range(2):
            image_rows(model, GEMMA.call(0), **options)
    assert attachment.stats() == AttachStats(encoded=2, hits=2)


def test_shallow_copy_of_the_base_model_returns_the_features_of_the_original() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attach(model)
    shallow = copy.copy(model.model)
    shallow.visual = QWEN3.model(seed=1).model.visual
    with torch.no_grad():
        rows = torch.cat(shallow.get_image_features(**call).pooler_output)
    assert torch.equal(rows, stock_rows(model, call))


def test_call_under_autocast_bypasses_the_cache() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model)
    with torch.autocast("cpu", torch.bfloat16):
        rows = image_rows(model, call)
        assert torch.equal(rows, stock_rows(model, call))
    assert not torch.equal(image_rows(model, call).to(rows.dtype), rows)
    assert attachment.stats() == AttachStats(encoded=1, bypassed=1)


def test_encode_that_raises_keeps_earlier_items_of_the_call_cached() -> None:
    model = QWEN3.model()
    attachment = attach(model)
    failing = [1]

    def fail(module: nn.Module, args: tuple[Any, ...], kwargs: Call) -> None:
        if kwargs["grid_thw"].tolist() == [[1, 4, 6]] and failing:
            raise FloatingPointError(f"image {failing.pop()} cannot be encoded")

    model.model.visual.register_forward_pre_hook(fail, with_kwargs=True)
    call = QWEN3.call(0, 1, 2)
    with pytest.raises(FloatingPointError, match="image 1 cannot be encoded"):
        image_rows(model, call)
    assert attachment.stats().encoded == len(attachment.cache) == 1
    expected = torch.cat([stock_rows(model, picture) for picture in QWEN3.pictures(0, 1, 2)])
    assert torch.equal(image_rows(model, call), expected)
    assert attachment.stats() == AttachStats(encoded=3, hits=1)
    assert attachment.cache.stats().leased_pages == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda features: (*features, *features), "returned features of 2 items, expected 1"),
        (lambda features: (), "returned features of 0 items, expected 1"),
        (
            lambda features: tuple(item[:, :-1] for item in features),
            r"rows of 95 torch.float32, but the cache expects rows of 96 torch.float32: detach",
        ),
    ],
    ids=["two", "none", "narrow"],
)
def test_wrong_stock_features_raise_and_are_not_cached(change: Any, message: str) -> None:
    model = QWEN3.model()
    stock = model.model.get_image_features

    def wrong(pixel_values: Tensor, image_grid_thw: Tensor, **kwargs: Any) -> Any:
        output = stock(pixel_values, image_grid_thw, **kwargs)
        output.pooler_output = change(output.pooler_output)
        return output

    model.model.get_image_features = wrong
    attachment = attach(model)
    with pytest.raises(RuntimeError, match=message):
        image_rows(model, QWEN3.call(0))
    assert attachment.stats().encoded == len(attachment.cache) == 0


def test_model_converted_to_another_dtype_after_attach_raises() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model, namespace="shared")
    image_rows(model, call)
    model.to(torch.bfloat16)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"rows of 96 torch.bfloat16, but .* 96 torch.float32"):
            image_rows(model, call)
    assert attachment.stats() == AttachStats(encoded=1)
    model.to(torch.float32)
    assert torch.equal(
        image_rows(model, call), stock_rows(model, call)
    )  # the weights differ from those at attach: they were rounded
    assert attachment.stats() == AttachStats(encoded=2)


@each_family
def test_pixels_of_new_images_only_are_copied_to_the_tower(
    family: TinyFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tower's device is "cpu:0", which differs from the pixels' "cpu", so that the pixels are copied."""
    monkeypatch.setattr(Session, "tower_device", lambda session: torch.device("cpu", 0))
    stock, model, attachment, _ = pair(family)
    for seeds, new in (((0,), (0,)), ((0, 1, 1), (1,)), ((1, 0), ()), ((2, 0, 1), (2,))):
        before = attachment.stats().pixel_bytes_moved
        assert_same_bits(features(model, family.call(*seeds)), features(stock, family.call(*seeds)))
        moved = attachment.stats().pixel_bytes_moved - before
        assert moved == sum(picture["pixel_values"].nbytes for picture in family.pictures(*new))


def test_pixels_of_the_next_image_are_copied_during_an_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image has two copies, pixels and grid. Those of the next image are queued before an encode."""
    with PinnedRing(1 << 20, backend="host") as ring:
        mover = FeatureMover(torch.device("cpu"), ring, None)
        monkeypatch.setattr(Session, "tower_device", lambda session: torch.device("cpu", 0))
        monkeypatch.setattr(Session, "mover_to", lambda session, device: mover)
        model, call, copies = QWEN3.model(), QWEN3.call(0, 1, 2, 3), []
        expected = torch.cat([stock_rows(model, picture) for picture in QWEN3.pictures(0, 1, 2, 3)])
        attach(model)
        model.model.visual.register_forward_hook(lambda *_: copies.append(ring.stats().copies))
        image_rows(model, QWEN3.call(3))  # the first image shows the form of the output
        rows = image_rows(model, call)
        assert [number - copies[0] for number in copies[1:]] == [4, 6, 6]
        call["pixel_values"].fill_(torch.nan)  # allowed: the call has returned
        assert torch.equal(rows, expected)
        assert torch.equal(image_rows(model, QWEN3.call(0, 1, 2, 3)), expected)


def test_pixels_of_the_next_image_that_do_not_fit_the_ring_are_copied_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first encode is called while nothing retires from the ring: a host that waits for a slot hangs."""
    pictures = QWEN3.pictures(0, 1)
    num_bytes = max(picture["pixel_values"].nbytes for picture in pictures)
    with PinnedRing(num_bytes + (8 << 10), backend="host", piece_bytes=4 << 10) as ring:
        mover = FeatureMover(torch.device("cpu"), ring, None)
        monkeypatch.setattr(Session, "tower_device", lambda session: torch.device("cpu", 0))
        monkeypatch.setattr(Session, "mover_to", lambda session, device: mover)
        model, copies = QWEN3.model(), []
        expected = torch.cat([stock_rows(model, picture) for picture in pictures])
        attach(model)
        image_rows(model, QWEN3.call(3))  # the first image shows the form of the output
        before = ring.stats().copies
        held = ring.hold()
        held.__enter__()

        def release(*_: Any) -> None:
            copies.append(ring.stats().copies - before)
            if len(copies) == 1:
                held.__exit__(None, None, None)

        hook = model.model.visual.register_forward_hook(release)
        rows = image_rows(model, QWEN3.call(0, 1))
        hook.remove()
    assert copies == [2, 4]
    assert torch.equal(rows, expected)


def test_waiter_for_one_image_does_not_wait_for_the_rest_of_the_owners_call() -> None:
    model, first = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model)
    expected = [stock_rows(model, picture) for picture in QWEN3.pictures(1, 2)]
    begun, may_continue, calls = threading.Event(), threading.Event(), []

    def stop_at_the_second(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            begun.set()
            assert may_continue.wait(60)

    model.model.visual.register_forward_pre_hook(stop_at_the_second)
    image_rows(model, first)  # the first image shows the form of the output
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(image_rows, model, QWEN3.call(0, 1, 2))
        assert begun.wait(60)
        assert torch.equal(
            image_rows(model, QWEN3.call(1)), expected[0]
        )  # the slow call still encodes image 2
        assert not slow.done()
        may_continue.set()
        assert torch.equal(slow.result(60)[-len(expected[1]) :], expected[1])
    assert attachment.stats() == AttachStats(encoded=3, hits=2)
    assert attachment.cache.stats().leased_pages == 0


@pytest.mark.parametrize("capacity", ["all images", "one image"])
def test_threads_with_the_same_images_in_other_orders_encode_each_once(capacity: str) -> None:
    cache = make_cache(24 * (8 if capacity == "all images" else 1), width=QWEN3.row_width, page_rows=1)
    model = QWEN3.model()
    attachment = attach(model, cache)
    orders = [(1, 2, 3), (3, 1, 2), (2, 3, 1), (3, 2, 1)]
    expected = {seed: stock_rows(model, QWEN3.call(seed)) for seed in (1, 2, 3)}
    image_rows(model, QWEN3.call(0))
    barrier = threading.Barrier(len(orders))

    def serve(order: tuple[int, ...]) -> Tensor:
        barrier.wait(60)
        return image_rows(model, QWEN3.call(*order))

    with ThreadPoolExecutor(len(orders)) as pool:
        for order, rows in zip(orders, pool.map(serve, orders), strict=True):
            assert torch.equal(rows, torch.cat([expected[seed] for seed in order]))
    stats = attachment.stats()
    assert stats.encoded + stats.hits == 1 + 3 * len(orders)
    assert capacity == "one image" or stats.encoded == 4
    assert (cache.stats().leased_pages, inspect(cache).num_claims) == (0, 0)
    cache.check_integrity()


class Offload:
    """Offloads a module as accelerate's hooks do: its weights are loaded only while it runs."""

    def __init__(self, module: nn.Module) -> None:
        self.runs = 0
        self.parts = [part for part in module.modules() if part._parameters]
        self.weights = [dict(part._parameters) for part in self.parts]
        self.unload()
        module.register_forward_pre_hook(lambda *_: self.load())
        module.register_forward_hook(lambda *_: self.unload())

    def load(self) -> None:
        self.runs += 1
        for part, weights in zip(self.parts, self.weights, strict=True):
            part._parameters.update(weights)

    def unload(self) -> None:
        for part, weights in zip(self.parts, self.weights, strict=True):
            part._parameters.update(
                {name: None if w is None else nn.Parameter(w.to("meta")) for name, w in weights.items()}
            )


@pytest.mark.parametrize("name", FAMILIES)
def test_offloaded_tower_runs_through_its_hooks_on_misses_only(name: str) -> None:
    family = FAMILIES[name]
    stock, model = one_at_a_time(family, family.model()), family.model()
    prompt = family.prompt(stock, 0, 1)
    model.hf_device_map = {f"model.{family.tower}": "cpu", "": 0}
    offload = Offload(getattr(model.base_model, family.tower))
    attachment = attach(model)
    assert attachment.cache.device == torch.device("cpu")
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(**prompt).logits, stock(**prompt).logits)
    assert offload.runs == 2
    assert attachment.stats() == AttachStats(encoded=2, hits=2)


def test_key_ignores_flags_that_are_false() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model)
    for options in ({}, {"output_attentions": False}, {"output_hidden_states": False}, {"logits_to_keep": 1}):
        image_rows(model, call, **options)
    assert attachment.stats().encoded == len(attachment.cache) == 1


@pytest.mark.parametrize("capacity", [None, 500])
def test_threads_whose_first_calls_have_one_image_encode_it_once(capacity: int | None) -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    expected = stock_rows(model, call)
    cache = None if capacity is None else make_cache(capacity, width=QWEN3.row_width)
    attachment = attach(model, cache)
    together = threading.Barrier(8)
    found: list[Tensor] = []

    def run() -> None:
        together.wait()
        found.append(image_rows(model, call))

    threads = [threading.Thread(target=run) for _ in range(together.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(rows, expected) for rows in found)
    assert (len(found), attachment.stats().encoded) == (8, 1)


def test_options_without_end_keep_giving_the_stock_rows() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model)
    expected = stock_rows(model, call)
    for number in range(100):  # more than the forms that are kept
        assert torch.equal(image_rows(model, call, unknown_option=number), expected)
    assert attachment.stats().encoded == 100


@torch.no_grad()
def test_output_that_a_caller_writes_to_keeps_constants() -> None:
    zoo = ZOO["ovis2"]
    model = zoo.model()
    attach(model)
    call = zoo.media["image"].make(0)
    for _ in range(2):
        output = model.model.get_image_features(**call)
        assert torch.equal(
            output.visual_indicator_features, zoo.stock(model, "image")(**call).visual_indicator_features
        )
        output.visual_indicator_features.mul_(2)


@torch.no_grad()
def test_part_of_the_tower_that_drops_values_at_random_is_not_cached(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    model.model.visual.blocks[0].mlp.act_fn = nn.Sequential(nn.GELU(), nn.Dropout(0.5)).eval()
    attachment = attach(model)
    eager = image_rows(model, call)
    model.model.visual.blocks[0].mlp.train()
    rows = [image_rows(model, call) for _ in range(2)]
    assert not torch.equal(*rows)
    assert attachment.stats() == AttachStats(encoded=1, bypassed=2)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "Qwen3VLModel: visual.blocks.0.mlp.act_fn.1 is in training mode: nothing is cached, because rows are "
        "random or each step changes the weights; call model.eval()"
    ]
    model.model.visual.eval()
    assert torch.equal(image_rows(model, call), eager)
    assert attachment.stats() == AttachStats(encoded=1, hits=1, bypassed=2)


@torch.no_grad()
def test_part_in_training_mode_that_is_not_random_is_cached() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model)
    for _ in range(2):
        image_rows(model, call)
        model.model.visual.blocks[0].mlp.train()
    image_rows(model, call)
    assert attachment.stats() == AttachStats(encoded=2, hits=1)
