"""Calls and options that do not fit: training mode, placeholders and images, dtypes, caches."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import torch
from caches import make_cache
from torch import nn

pytest.importorskip("transformers")

from attached import QWEN3, logits, mixed, plain_kernels  # noqa: F401
from tiny_models import FAMILIES, IMAGE, TinyFamily, one_at_a_time
from tiny_zoo import ZOO

from vitcache import EmbeddingCache
from vitcache.adapters import vision_tower
from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


def test_attach_model_in_training_mode_warns_once_and_caches_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = QWEN3.model().train()
    attachment = attach(model)
    prompt = QWEN3.prompt(model, 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            logits(model, prompt)
    [record] = [each for each in caplog.records if "training mode" in each.message]
    assert record.message == (
        "Qwen3VLModel is in training mode: nothing is cached, because rows are random or each step changes "
        "the weights; call model.eval()"
    )
    assert (attachment.stats().bypassed, len(attachment.cache)) == (3, 0)


def more_images(family: TinyFamily, model: nn.Module) -> Any:
    return family.prompt(model, 0) | family.call(0, 1)


def fewer_images(family: TinyFamily, model: nn.Module) -> Any:
    return family.prompt(model, 0, 1) | family.call(0)


def no_placeholders(family: TinyFamily, model: nn.Module) -> Any:
    prompt = family.prompt(model, 0)
    return prompt | {"input_ids": torch.where(prompt["input_ids"] == IMAGE, 5, prompt["input_ids"])}


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "llava_onevision"])
@pytest.mark.parametrize("change", [more_images, fewer_images, no_placeholders])
def test_prompt_whose_placeholders_and_images_disagree_raises_the_stock_error(name: str, change: Any) -> None:
    family = FAMILIES[name]
    stock, model = family.model(), family.model()
    prompt = change(family, stock)
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever the stock model raises
        logits(stock, prompt)
    attachment = attach(model)
    with pytest.raises(type(theirs.value)) as ours:
        logits(model, prompt)
    assert str(ours.value) == str(theirs.value)
    # The entries of the refused prompt are right: the next prompt reads them.
    right = family.prompt(stock, 0)
    assert torch.equal(logits(model, right), logits(one_at_a_time(family, stock), right))
    assert attachment.cache.stats().leased_pages == 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("device_bytes", [None, 1 << 20])
def test_attach_default_cache_has_the_dtype_of_the_first_output(
    dtype: torch.dtype, device_bytes: int | None
) -> None:
    family = FAMILIES["qwen2_5_vl"]
    stock, model = one_at_a_time(family, mixed(dtype)), mixed(dtype)
    attachment = attach(model, device_bytes=device_bytes)
    for seeds, encoded in (((0,), 1), ((0, 1), 2), ((1, 0), 2)):
        call = family.call(*seeds)
        ours, theirs = (each.model.get_image_features(**call).pooler_output for each in (model, stock))
        assert all(torch.equal(a, b) and a.dtype == dtype for a, b in zip(ours, theirs, strict=True))
        assert attachment.stats().encoded == encoded
    assert attachment.cache.dtype == dtype
    capacity = 32768 * family.row_width * dtype.itemsize if device_bytes is None else device_bytes
    assert attachment.cache.stats().device_capacity_bytes == capacity


@torch.no_grad()
def test_default_cache_is_closed_before_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[EmbeddingCache] = []

    def make(*args: Any, **options: Any) -> EmbeddingCache:
        for earlier in made:
            with pytest.raises(RuntimeError, match="closed"):
                earlier.get(bytes(32))
        made.append(EmbeddingCache(*args, **options))
        return made[-1]

    monkeypatch.setattr(vision_tower, "EmbeddingCache", make)
    family = FAMILIES["qwen2_5_vl"]
    model = mixed(torch.float32)
    attachment = attach(model)
    first = attachment.cache
    model.model.get_image_features(**family.call(0))
    assert made == [first, attachment.cache]
    with pytest.raises(RuntimeError, match="closed"):
        first.advance_epoch()  # a handle to the closed cache does not fail in silence


@torch.no_grad()
def test_replacement_that_fails_raises_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["qwen2_5_vl"]
    model = mixed(torch.float32)
    attachment = attach(model)
    full = [True]

    def make(width: int, *, dtype: torch.dtype, **options: Any) -> EmbeddingCache:
        if full[0] and dtype == torch.float32:
            raise torch.OutOfMemoryError("the device is full")
        return EmbeddingCache(width, dtype=dtype, **options)

    monkeypatch.setattr(vision_tower, "EmbeddingCache", make)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError, match="the device is full"):
            model.model.get_image_features(**family.call(0))
    full[0] = False
    for _ in range(2):
        model.model.get_image_features(**family.call(0))
    assert (attachment.cache.dtype, len(attachment.cache)) == (torch.float32, 1)


@torch.no_grad()
@pytest.mark.parametrize("first", ["image", "audio"])
def test_modalities_of_two_dtypes_are_served_as_by_the_stock_model(
    first: str, caplog: pytest.LogCaptureFixture
) -> None:
    zoo = ZOO["gemma4"]

    def build() -> nn.Module:
        model = zoo.model(torch.bfloat16)
        embed = model.model.embed_audio.float()
        embed.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {n: v.float() for n, v in kwargs.items()}), with_kwargs=True
        )
        return model

    model, stock = build(), build()
    attachment = attach(model)
    second = {"image": "audio", "audio": "image"}[first]
    for modality in (first, second, first, second):
        item = zoo.media[modality].make(0)
        ours = getattr(model.model, f"get_{modality}_features")(**item).pooler_output
        theirs = zoo.stock(stock, modality)(**item).pooler_output
        assert ours[0].dtype == theirs[0].dtype
        assert torch.equal(ours[0], theirs[0])
    warnings = [record.message for record in caplog.records if "another modality" in record.message]
    if first == "audio":  # float32 holds the rows of both
        assert (attachment.stats(), warnings) == (AttachStats(encoded=2, hits=2), [])
    else:
        assert attachment.stats() == AttachStats(encoded=1, hits=1, bypassed=2)
        assert len(warnings) == 1
        assert "get_audio_features returned rows of 32 torch.float32" in warnings[0]


@torch.no_grad()
def test_first_calls_of_several_threads_share_the_replaced_cache() -> None:
    family = FAMILIES["qwen2_5_vl"]
    stock, model = one_at_a_time(family, mixed(torch.float32)), mixed(torch.float32)
    attachment = attach(model)
    found: list[Any] = [None] * 6

    def run(number: int) -> None:
        with torch.no_grad():
            found[number] = model.model.get_image_features(**family.call(number % 3)).pooler_output

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, rows in enumerate(found):
        expected = stock.model.get_image_features(**family.call(number % 3)).pooler_output
        assert torch.equal(rows[0], expected[0])
    assert (len(attachment.cache), attachment.cache.dtype) == (3, torch.float32)


def test_attach_given_cache_may_have_any_dtype_of_the_towers_weights() -> None:
    family = FAMILIES["qwen2_5_vl"]
    model = mixed(torch.float32)
    with pytest.raises(ValueError, match=r"got rows of 32 torch\.float16"):
        attach(model, make_cache(width=32, dtype=torch.float16))
    attachment = attach(model, make_cache(width=32, dtype=torch.bfloat16))
    with (
        torch.no_grad(),
        pytest.raises(
            RuntimeError, match=r"rows of 32 torch\.float32, but the cache expects .* 32 torch\.bf"
        ),
    ):
        model.model.get_image_features(**family.call(0))
    assert len(attachment.cache) == 0
    attachment.detach()
    attachment = attach(model, make_cache(width=32, dtype=torch.float32))
    with torch.no_grad():
        model.model.get_image_features(**family.call(0))
    assert len(attachment.cache) == 1


def test_attach_options_make_the_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def make(*args: Any, **options: Any) -> EmbeddingCache:
        made.append(options)
        return EmbeddingCache(*args, **options)

    monkeypatch.setattr(vision_tower, "EmbeddingCache", make)
    page = 16 * QWEN3.row_width * 4
    options = {"host_bytes": 20 * page, "policy": "s3fifo", "checksum": True}
    attachment = attach(QWEN3.model(), device_bytes=10 * page, **options)
    stats = attachment.cache.stats()
    assert (stats.device_capacity_bytes, stats.host_capacity_bytes) == (10 * page, 20 * page)
    assert [{name: each[name] for name in options} for each in made] == [options]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"host_bytes": 1}, ValueError, "host_bytes"),
        ({"host_bytes": 1.5}, TypeError, "host_bytes"),
        ({"policy": "random"}, ValueError, "policy"),
        ({"device_bytes": True}, TypeError, "device_bytes"),
    ],
)
def test_attach_wrong_option_of_the_cache_is_refused_and_replaces_nothing(
    options: Any, error: type[Exception], message: str
) -> None:
    model = QWEN3.model()
    with pytest.raises(error, match=message):
        attach(model, **options)
    assert "get_image_features" not in vars(model.model)


@pytest.mark.parametrize("option", ["host_bytes", "policy", "checksum", "device_bytes"])
def test_attach_option_of_the_default_cache_excludes_a_given_cache(option: str) -> None:
    value = {"policy": "lru", "checksum": True}.get(option, 1 << 20)
    with pytest.raises(ValueError, match=f"give cache or {option}, not both"):
        attach(QWEN3.model(), make_cache(width=QWEN3.row_width), **{option: value})


@torch.no_grad()
def test_training_call_of_a_modality_that_is_not_cached_is_noticed() -> None:
    zoo = ZOO["gemma4"]
    model = zoo.model(torch.bfloat16)
    model.model.embed_audio.float().register_forward_pre_hook(
        lambda module, args, kwargs: (args, {n: v.float() for n, v in kwargs.items()}), with_kwargs=True
    )
    attachment = attach(model)
    image, audio = (zoo.media[modality].make(0) for modality in ("image", "audio"))
    for _ in range(2):
        model.model.get_image_features(**image)
        model.model.get_audio_features(**audio)
    model.train()
    model.model.get_audio_features(**audio)
    for weight in model.model.embed_vision.parameters():
        weight.data.add_(1)
    model.eval()
    ours = model.model.get_image_features(**image).pooler_output[0]
    assert torch.equal(ours, zoo.stock(model, "image")(**image).pooler_output[0])
    assert (attachment.stats().encoded, attachment.stats().hits) == (2, 1)
