"""Calls and options that do not fit: training mode, placeholders and images, dtypes, caches."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from caches import make_cache
from torch import nn

pytest.importorskip("transformers")

from attached import QWEN3, logits, plain_kernels  # noqa: F401
from tiny_models import FAMILIES, IMAGE, TinyFamily, one_at_a_time

from vitcache import EmbeddingCache
from vitcache.adapters import vision_tower
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
        "Qwen3VLModel is in training mode: nothing is cached, because each step changes the weights; call "
        "model.eval()"
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


def mixed(dtype: torch.dtype) -> nn.Module:
    """A model whose tower has bfloat16 weights, and whose merger has weights of another dtype."""
    model = FAMILIES["qwen2_5_vl"].model(torch.bfloat16)
    merger = model.model.visual.merger.to(dtype)
    merger.register_forward_pre_hook(lambda module, args: (args[0].to(dtype), *args[1:]))
    return model


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
