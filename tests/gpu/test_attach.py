"""An attached model on a GPU: bits of the stock model with one encode per item, pixels from the CPU."""

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


def dtype_of(gpu: Machine) -> torch.dtype:
    return gpu.size(torch.bfloat16, torch.float32)


@each_family
def test_chat_with_pixels_on_the_cpu(gpu: Machine, family: TinyFamily) -> None:
    dtype = dtype_of(gpu)
    stock = one_at_a_time(family, family.model(dtype).to(gpu.device))
    model = family.model(dtype).to(gpu.device)
    attachment = attach(model)
    assert attachment.cache.device.type == gpu.device
    # Lengths of the items, found on the CPU: in float32, as not every virtual machine that names AMX has it.
    words = family.model()
    for turn in range(1, gpu.size(6, 3)):
        prompt = family.prompt(words, *range(turn))
        there = on(gpu.device, prompt)
        mixed = {**there, "pixel_values": prompt["pixel_values"]}
        with torch.no_grad():
            assert torch.equal(model(**mixed).logits, stock(**there).logits)
            torch.manual_seed(turn)
            ours = model.generate(**mixed, max_new_tokens=4, do_sample=True, num_return_sequences=2)
            torch.manual_seed(turn)
            theirs = stock.generate(**there, max_new_tokens=4, do_sample=True, num_return_sequences=2)
        assert torch.equal(ours, theirs)
        stats = attachment.stats()
        assert (stats.encoded, stats.bypassed) == (turn, 0)
    pixels = sum(picture["pixel_values"].nbytes for picture in family.pictures(*range(turn)))
    assert attachment.stats().pixel_bytes_moved == (0 if gpu.dry else pixels)


@each_family
def test_pinned_pixels_may_be_overwritten_after_the_call(gpu: Machine, family: TinyFamily) -> None:
    model = family.model(dtype_of(gpu)).to(gpu.device)
    attach(model)
    call = family.call(0, 1)
    if not gpu.dry:
        call = {name: value.pin_memory() for name, value in call.items()}
    again = {name: value.clone() for name, value in call.items()}
    with torch.no_grad():
        gpu.slow(20)
        first = model.get_image_features(**call)
        call["pixel_values"].zero_()
        second = model.get_image_features(**again)
        for ours, theirs in zip(first.pooler_output, second.pooler_output, strict=True):
            assert torch.equal(ours, theirs)
        fresh = family.model(dtype_of(gpu)).to(gpu.device)
        attach(fresh)
        for ours, theirs in zip(
            first.pooler_output, fresh.get_image_features(**again).pooler_output, strict=True
        ):
            assert torch.equal(ours, theirs)


@each_family
def test_rows_come_back_from_a_cache_on_another_device(gpu: Machine, family: TinyFamily) -> None:
    dtype = dtype_of(gpu)
    stock = one_at_a_time(family, family.model(dtype).to(gpu.device))
    model = family.model(dtype).to(gpu.device)
    cache = make_cache(width=family.row_width, dtype=dtype)
    attachment = attach(model, cache)
    call = on(gpu.device, family.call(0, 1))
    with torch.no_grad():
        for _ in range(2):
            ours, theirs = model.get_image_features(**call), stock.get_image_features(**call)
            for one, other in zip(ours.pooler_output, theirs.pooler_output, strict=True):
                assert one.device == other.device
                assert torch.equal(one, other)
    assert attachment.stats().hits == 2


def test_entries_survive_on_side_streams(gpu: Machine) -> None:
    """Encodes on one stream and hits on others, with no host wait between them."""
    family = FAMILIES["qwen3_vl"]
    dtype = dtype_of(gpu)
    model = family.model(dtype).to(gpu.device)
    call = on(gpu.device, family.call(0, 1))
    with torch.no_grad():
        stock = one_at_a_time(family, family.model(dtype).to(gpu.device)).get_image_features(**call)
    # Room for one of the two images, so that pages change hands all the time.
    rows = max(len(item) for item in stock.pooler_output)
    cache = make_cache(rows, width=family.row_width, dtype=dtype, page_rows=1, device=gpu.device)
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
