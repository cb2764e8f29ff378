"""An attached model on a GPU equals the stock model that encodes one item per call, bit for bit."""

from __future__ import annotations

import pytest
import torch
from caches import make_cache

pytest.importorskip("transformers")

from attached import each_family
from machine import Machine
from tiny_models import FAMILIES, Call, TinyFamily, one_at_a_time

from vitcache.adapters.transformers import attach

pytestmark = pytest.mark.transformers


def on(device: str, call: Call) -> Call:
    return {name: value.to(device) for name, value in call.items()}


DTYPE = torch.bfloat16


@each_family
def test_attached_chat_with_pixels_on_the_cpu_equals_the_stock_model(
    gpu: Machine, family: TinyFamily
) -> None:
    stock = one_at_a_time(family, family.model(DTYPE).to(gpu.device))
    model = family.model(DTYPE).to(gpu.device)
    attachment = attach(model)
    assert attachment.cache.device.type == gpu.device
    # This model is float32: some virtual machines report AMX and cannot run its bfloat16.
    cpu_model = family.model()  # encodes the pictures to find the number of rows of each
    for turn in range(1, gpu.size(6, 3)):
        prompt = family.prompt(cpu_model, *range(turn))
        on_device = on(gpu.device, prompt)
        mixed = {**on_device, "pixel_values": prompt["pixel_values"]}
        with torch.no_grad():
            assert torch.equal(model(**mixed).logits, stock(**on_device).logits)
            torch.manual_seed(turn)
            ours = model.generate(**mixed, max_new_tokens=4, do_sample=True, num_return_sequences=2)
            torch.manual_seed(turn)
            theirs = stock.generate(**on_device, max_new_tokens=4, do_sample=True, num_return_sequences=2)
        assert torch.equal(ours, theirs)
        stats = attachment.stats()
        assert (stats.encoded, stats.bypassed) == (turn, 0)
    pixels = sum(picture["pixel_values"].nbytes for picture in family.pictures(*range(turn)))
    assert attachment.stats().pixel_bytes_moved == (0 if gpu.dry else pixels)


@each_family
def test_disabled_attached_model_with_pixels_on_the_cpu_equals_the_stock_model(
    gpu: Machine, family: TinyFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, model = (family.model(DTYPE).to(gpu.device) for _ in range(2))
    attachment = attach(model)
    prompt = family.prompt(family.model(), 0, 1)
    on_device = on(gpu.device, prompt)
    mixed = {**on_device, "pixel_values": prompt["pixel_values"]}
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    with torch.no_grad():
        assert torch.equal(model(**mixed).logits, stock(**on_device).logits)
    assert attachment.stats().disabled_calls == 1
    assert len(attachment.cache) == 0


@each_family
def test_get_image_features_lets_the_caller_overwrite_pinned_pixels(gpu: Machine, family: TinyFamily) -> None:
    model = family.model(DTYPE).to(gpu.device)
    attach(model)
    call = family.call(0, 1)
    if not gpu.dry:
        call = {name: value.pin_memory() for name, value in call.items()}
    unchanged = {name: value.clone() for name, value in call.items()}
    with torch.no_grad():
        gpu.slow(20)
        first = model.get_image_features(**call)
        call["pixel_values"].zero_()
        second = model.get_image_features(**unchanged)
        for ours, theirs in zip(first.pooler_output, second.pooler_output, strict=True):
            assert torch.equal(ours, theirs)
        fresh = family.model(DTYPE).to(gpu.device)
        attach(fresh)
        for ours, theirs in zip(
            first.pooler_output, fresh.get_image_features(**unchanged).pooler_output, strict=True
        ):
            assert torch.equal(ours, theirs)


@each_family
def test_attached_model_with_a_cpu_cache_returns_rows_on_its_own_device(
    gpu: Machine, family: TinyFamily
) -> None:
    stock = one_at_a_time(family, family.model(DTYPE).to(gpu.device))
    model = family.model(DTYPE).to(gpu.device)
    cache = make_cache(width=family.row_width, dtype=DTYPE)
    attachment = attach(model, cache)
    call = on(gpu.device, family.call(0, 1))
    with torch.no_grad():
        for _ in range(2):
            ours, theirs = model.get_image_features(**call), stock.get_image_features(**call)
            for our_rows, their_rows in zip(ours.pooler_output, theirs.pooler_output, strict=True):
                assert our_rows.device == their_rows.device
                assert torch.equal(our_rows, their_rows)
    assert attachment.stats().hits == 2


def test_attached_model_on_changing_streams_returns_the_stock_rows(gpu: Machine) -> None:
    """Each call encodes or hits on a stream of its own. The host waits for none of them."""
    family = FAMILIES["qwen3_vl"]
    model = family.model(DTYPE).to(gpu.device)
    call = on(gpu.device, family.call(0, 1))
    with torch.no_grad():
        stock = one_at_a_time(family, family.model(DTYPE).to(gpu.device)).get_image_features(**call)
    # The cache fits one of the two images, so that each call evicts.
    rows = max(len(item) for item in stock.pooler_output)
    cache = make_cache(rows, width=family.row_width, dtype=DTYPE, page_rows=1, device=gpu.device)
    attach(model, cache)
    gpu.synchronize()
    found = []
    for _ in range(gpu.size(20, 3)):
        with gpu.stream(), torch.no_grad():
            gpu.slow(1)
            found.append(model.get_image_features(**call))
    gpu.synchronize()
    for output in found:
        for ours, theirs in zip(output.pooler_output, stock.pooler_output, strict=True):
            assert torch.equal(ours, theirs)
    cache.check_integrity()
