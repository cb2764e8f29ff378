"""Calls whose rows the stock forward places equal, on a GPU, those of `placement="off"` and the stock merge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from caches import make_cache

pytest.importorskip("transformers")

from attached import GEMMA, QWEN3, each_family
from machine import Machine
from tiny_models import FAMILIES, Call, TinyFamily, one_at_a_time
from torch import nn

from vitcache.adapters.lazy_features import LazyFeatures
from vitcache.adapters.transformers import Attachment, attach

pytestmark = pytest.mark.transformers

DTYPE = torch.bfloat16
LLAVA = FAMILIES["llava_onevision"]


def make_model(gpu: Machine, family: TinyFamily) -> nn.Module:
    return family.model(DTYPE).to(gpu.device)


def make_prompt(gpu: Machine, family: TinyFamily, *seeds: int, pixels_on: str | None = None) -> Call:
    """A prompt on the device, with pixels on another one if `pixels_on` is given."""
    # A float32 model: some virtual machines report AMX and cannot run its bfloat16.
    prompt = family.prompt(family.model(), *seeds)
    pixels = prompt["pixel_values"].to(pixels_on or gpu.device)
    return {name: value.to(gpu.device) for name, value in prompt.items()} | {"pixel_values": pixels}


def placed(attachment: Attachment) -> int:
    """The number of placed calls; no call may be unplaced."""
    stats = attachment.stats()
    assert stats.unplaced_calls == {}
    return stats.placed_calls


@contextmanager
def inputs_of_language_model(model: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """A list that gets the keyword arguments of each call of the language model."""
    calls: list[dict[str, Any]] = []
    handle = model.base_model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    try:
        yield calls
    finally:
        handle.remove()


@each_family
@torch.no_grad()
def test_placed_logits_and_tokens_equal_those_of_off_and_of_the_stock_merge(
    gpu: Machine, family: TinyFamily
) -> None:
    stock = one_at_a_time(family, make_model(gpu, family))
    ours, off = make_model(gpu, family), make_model(gpu, family)
    attachment = attach(ours)
    attach(off, placement="off")
    for turn in (1, 2):
        prompt = make_prompt(gpu, family, *range(turn))
        logits = ours(**prompt).logits
        assert torch.equal(logits, off(**prompt).logits)
        assert torch.equal(logits, stock(**prompt).logits)
    tokens, *others = (each.generate(**prompt, max_new_tokens=3) for each in (ours, off, stock))
    assert all(torch.equal(tokens, other) for other in others)
    assert placed(attachment) == 3


@torch.no_grad()
def test_packed_levels_equal_the_levels_that_off_passes_on(gpu: Machine) -> None:
    ours, off = make_model(gpu, QWEN3), make_model(gpu, QWEN3)
    attachment = attach(ours)
    attach(off, placement="off")
    prompt = make_prompt(gpu, QWEN3, 1, 0, 1)
    with inputs_of_language_model(ours) as our_inputs, inputs_of_language_model(off) as their_inputs:
        for _ in range(2):  # rows of the encoder, then leases
            ours(**prompt)
            off(**prompt)
    for mine, theirs in zip(our_inputs, their_inputs, strict=True):
        assert torch.equal(mine["inputs_embeds"], theirs["inputs_embeds"])
        levels = theirs["deepstack_visual_embeds"]
        assert len(mine["deepstack_visual_embeds"]) == len(levels) == 2
        for level, other in zip(mine["deepstack_visual_embeds"], levels, strict=True):
            assert torch.equal(level, other)
    assert placed(attachment) == 2


@torch.no_grad()
def test_placed_calls_on_changing_streams_give_the_stock_logits(gpu: Machine) -> None:
    """Each call hits one image and evicts another one, whose rows an earlier stream may still read."""
    stock, model = one_at_a_time(QWEN3, make_model(gpu, QWEN3)), make_model(gpu, QWEN3)
    prompts = [make_prompt(gpu, QWEN3, *seeds) for seeds in ((0, 1), (1, 2), (2, 0))]
    wanted = [stock(**prompt).logits for prompt in prompts]
    call = {name: value.to(gpu.device) for name, value in QWEN3.call(0, 1, 2).items()}
    lengths = [len(rows) for rows in stock.get_image_features(**call).pooler_output]
    rows = sum(lengths) - min(lengths)  # those of any two images
    cache = make_cache(rows, width=QWEN3.row_width, dtype=DTYPE, page_rows=1, device=gpu.device)
    attachment = attach(model, cache)
    model(**prompts[0])
    gpu.synchronize()
    found = []
    for turn in range(gpu.size(20, 4)):
        with gpu.stream():
            gpu.slow(1)
            found.append(model(**prompts[turn % 3]).logits)
    gpu.synchronize()
    for turn, logits in enumerate(found):
        assert torch.equal(logits, wanted[turn % 3])
    assert placed(attachment) == 1 + len(found)
    assert attachment.stats().hits >= len(found)
    assert cache.stats().evictions >= len(found) - 1
    cache.check_integrity()


@torch.no_grad()
def test_lazy_features_read_on_other_streams_after_an_eviction_are_the_stock_rows(gpu: Machine) -> None:
    model, off = make_model(gpu, GEMMA), make_model(gpu, GEMMA)
    attachment = attach(model)
    attach(off, placement="off")
    prompt = make_prompt(gpu, GEMMA, 0, 1)
    wanted = off(**prompt).image_hidden_states
    model(**prompt)
    gpu.synchronize()
    with gpu.stream():
        gpu.slow(5)
        output = model(**prompt)  # a hit
    assert isinstance(output.image_hidden_states, LazyFeatures)
    attachment.cache.clear()
    with gpu.stream():
        gpu.slow(5)
        first = output.image_hidden_states + 0  # copies the rows
    with gpu.stream():
        second = output.image_hidden_states + 0  # waits for the copy
        del output
    attachment.cache.clear()
    gpu.synchronize()
    assert torch.equal(first, wanted)
    assert torch.equal(second, wanted)
    assert placed(attachment) == 2


@pytest.mark.parametrize("family", [QWEN3, LLAVA], ids=lambda family: family.name)
@torch.no_grad()
def test_placed_hit_waits_once_more_for_the_device_than_off(gpu: Machine, family: TinyFamily) -> None:
    """The host reads the mask of the placeholders. No other part of a placement waits."""
    ours, off = make_model(gpu, family), make_model(gpu, family)
    attachment = attach(ours)
    attach(off, placement="off")
    prompt = make_prompt(gpu, family, 0, 1, pixels_on="cpu")
    for model in (ours, off, ours, off):  # encode, then load the kernels of a hit
        model(**prompt)
    with gpu.host_syncs() as waits:
        ours(**prompt)
    with gpu.host_syncs() as waits_of_off:
        off(**prompt)
    assert len(waits) <= len(waits_of_off) + 1
    assert placed(attachment) == 3


@torch.no_grad()
def test_placed_hit_needs_less_memory_before_the_language_model_than_off(gpu: Machine) -> None:
    """With "off", the rows are in a buffer beside the text embeddings and the copy that the merge makes."""
    prompt, peaks = make_prompt(gpu, LLAVA, *[0] * 16, pixels_on="cpu"), {}
    for placement in ("auto", "off"):
        model = make_model(gpu, LLAVA)
        attachment = attach(model, placement=placement)
        for _ in range(2):
            model(**prompt)
        peaks[placement] = peak_before_language_model(gpu, model, prompt)
        assert attachment.stats().placed_calls == (3 if placement == "auto" else 0)
    assert gpu.dry or peaks["auto"] < peaks["off"]


def peak_before_language_model(gpu: Machine, model: nn.Module, prompt: Call) -> int:
    """The bytes that a forward adds to the allocated memory, up to its language model. 0 in a dry run."""
    if gpu.dry:
        model(**prompt)
        return 0
    peaks: list[int] = []
    handle = model.base_model.language_model.register_forward_pre_hook(
        lambda *_: peaks.append(torch.cuda.max_memory_allocated())
    )
    gpu.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model(**prompt)
    handle.remove()
    return peaks[0] - before
