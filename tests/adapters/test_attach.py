"""An attached model returns the bits of the stock model with one encode per item, and encodes each item once.

The stock model is another object without vitcache.
"""

from __future__ import annotations

import inspect
import operator
import threading
from typing import Any

import pytest
import torch
from caches import make_cache
from torch import Tensor

pytest.importorskip("transformers")

from attached import (
    assert_same_bits,
    each_family,
    features,
    form,
    generate,
    logits,
    pair,
    plain_kernels,  # noqa: F401
    stock_rows,
    tensors,
)
from tiny_models import FAMILIES, TinyFamily, one_at_a_time, stock_method

from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "beams": {"do_sample": False, "num_beams": 3},
    "several returned": {"do_sample": True, "num_return_sequences": 2},
    "beams returned": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_attach_chat_turn_encodes_only_its_new_image(family: TinyFamily, dtype: torch.dtype) -> None:
    stock, model, attachment, tower = pair(family, dtype)
    for turn in range(1, 5):
        prompt = family.prompt(stock, *range(turn))
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
        assert tower.take() == 1
        for ours, theirs in zip(generate(model, prompt), generate(stock, prompt), strict=True):
            assert torch.equal(ours, theirs)
        assert tower.take() == 0
    shuffled = family.prompt(stock, 2, 0, 3, 1)
    assert torch.equal(logits(model, shuffled), logits(stock, shuffled))
    assert tower.take() == 0
    stats = attachment.stats()
    assert (stats.encoded, stats.duplicates, stats.bypassed, stats.pixel_bytes_moved) == (4, 0, 0, 0)
    assert stats.hits == (0 + 1 + 2 + 3) + (1 + 2 + 3 + 4) + 4
    assert len(attachment.cache) == 4


@each_family
def test_attach_generate_returns_the_stock_tokens_and_logits(family: TinyFamily) -> None:
    for mode, options in MODES.items():
        stock, model, _, tower = pair(family)
        prompt = family.prompt(stock, 0, 1)
        expected = generate(stock, prompt, **options)
        for encodes in (2, 0):
            for ours, theirs in zip(generate(model, prompt, **options), expected, strict=True):
                assert torch.equal(ours, theirs), mode
            assert tower.take() == encodes, mode


@each_family
def test_attach_generate_of_two_prompts_with_beams_returns_the_stock_tokens(family: TinyFamily) -> None:
    stock, model, _, tower = pair(family)
    prompt = family.prompt(stock, 0)
    batch = {name: torch.cat([value, value]) for name, value in prompt.items()}
    for ours, theirs in zip(
        generate(model, batch, **MODES["beams"]), generate(stock, batch, **MODES["beams"]), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert tower.take() == 1


@each_family
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)], ids=["one image", "three images"])
def test_attach_output_has_the_containers_of_the_stock_output(
    family: TinyFamily, seeds: tuple[int, ...]
) -> None:
    _, model, _, _ = pair(family)
    call, stock = family.call(*seeds), stock_method(model, "image")
    with torch.no_grad():
        expected = form(stock(**call, return_dict=True))
    for _ in range(2):  # encoded, then read from the cache
        output = features(model, call)
        assert form(output) == expected
        assert output.last_hidden_state is None
    assert inspect.signature(model.base_model.get_image_features) == inspect.signature(stock)


@each_family
def test_attach_base_model_serves_it_and_the_whole_model(family: TinyFamily) -> None:
    stock, whole = one_at_a_time(family, family.model()), family.model()
    attachment = attach(whole.base_model)
    for model in (whole, whole.base_model):
        assert_same_bits(features(model, family.call(0, 1)), features(stock, family.call(0, 1)))
    assert attachment.stats().encoded == 2


@each_family
def test_attach_output_written_in_place_leaves_later_outputs_unchanged(family: TinyFamily) -> None:
    stock, model, _, _ = pair(family)
    call = family.call(0, 1, 0)
    expected = features(stock, call)
    for _ in range(3):
        output = features(model, call)
        assert_same_bits(output, expected)
        for number, tensor in enumerate(tensors(output)):
            tensor.fill_(number)
        assert all((tensor == number).all() for number, tensor in enumerate(tensors(output)))
        output.pooler_output = None


@each_family
def test_attach_equal_images_in_one_call_are_encoded_once(family: TinyFamily) -> None:
    stock, model, attachment, tower = pair(family)
    prompt = family.prompt(stock, 0, 1, 0, 0)
    assert torch.equal(logits(model, prompt), logits(stock, prompt))
    assert tower.take() == 2
    assert attachment.stats().duplicates == 2


@each_family
def test_attach_wrong_cached_row_changes_the_logits(family: TinyFamily) -> None:
    stock, model, attachment, _ = pair(family)
    prompt = family.prompt(stock, 0, 1)
    put, rows_by_key = attachment.cache.put, {}
    attachment.cache.put = lambda key, rows, **options: put(  # type: ignore[method-assign]
        key, rows_by_key.setdefault(key, rows), **options
    )
    right = logits(model, prompt)
    key, rows = list(rows_by_key.items())[1]
    assert rows.shape[1] == family.row_width
    for column in range(0, family.row_width, 32):  # first column of the embedding and of each deepstack level
        wrong = rows.clone()
        wrong[1, column] += 1
        put(key, wrong)
        assert not torch.equal(logits(model, prompt), right)
    put(key, rows)
    assert torch.equal(logits(model, prompt), right)


@each_family
@pytest.mark.parametrize("capacity", ["one image", "no image", "all images on the host"])
def test_attach_cache_that_is_too_small_returns_the_stock_logits(family: TinyFamily, capacity: str) -> None:
    rows = max(
        len(stock_rows(family.model(), picture).flatten(0, -2)) for picture in family.pictures(0, 1, 2)
    )
    device_rows = 1 if capacity == "no image" else rows
    host_rows = 3 * device_rows if capacity == "all images on the host" else 0
    cache = make_cache(device_rows, host_rows, width=family.row_width, page_rows=1)
    stock, model, attachment, tower = pair(family, cache=cache)
    prompt = family.prompt(stock, 0, 1, 2)
    for _ in range(2):
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
    encodes = tower.take()
    assert encodes == attachment.stats().encoded == (3 if host_rows else encodes)
    assert cache.stats().rejections == (6 if capacity == "no image" else 0)
    cache.check_integrity()


@each_family
def test_attach_inference_mode_and_no_grad_share_entries(family: TinyFamily) -> None:
    stock, model, _, tower = pair(family)
    prompt = family.prompt(stock, 0)
    expected = logits(stock, prompt)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(model(**prompt).logits, expected)
    assert tower.take() == 1


@each_family
def test_attach_key_ignores_options_of_the_language_model(family: TinyFamily) -> None:
    stock, model, _, tower = pair(family)
    prompt = family.prompt(stock, 0)
    for options in ({}, {"use_cache": True}, {"use_cache": False}, {"logits_to_keep": 1}):
        assert torch.equal(logits(model, prompt | options), logits(stock, prompt | options))
    assert tower.take() == 1


def test_attach_threads_on_one_model_get_the_stock_logits() -> None:
    family = FAMILIES["gemma3"]
    stock, model, attachment, _ = pair(family)
    prompts = [family.prompt(stock, *seeds) for seeds in ((0, 1), (1, 2), (2, 0), (0, 1, 2))]
    expected = [logits(stock, prompt) for prompt in prompts]
    found: list[list[Tensor]] = [[] for _ in prompts]

    def run(i: int) -> None:
        found[i] = [logits(model, prompts[i]) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == 5
        assert all(torch.equal(each, theirs) for each in ours)
    assert attachment.stats().bypassed == 0
    assert len(attachment.cache) == 3


def test_attach_compiled_code_reads_the_cache_and_does_not_trace_the_encode() -> None:
    family = FAMILIES["gemma3"]
    stock, model, _, tower = pair(family)
    traced: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        traced.extend(node.target for node in graph.graph.nodes if node.op.startswith("call"))
        return graph.forward

    @torch.compile(backend=backend)
    def doubled(pixels: Tensor) -> Tensor:
        return 2 * model.get_image_features(pixels, return_dict=True).pooler_output

    call = family.call(0, 1)
    with torch.no_grad():
        for encodes in (2, 0):
            assert torch.equal(doubled(call["pixel_values"]), 2 * features(stock, call).pooler_output)
            assert tower.take() == encodes
    assert traced == [operator.mul]


@each_family
def test_stock_batched_encode_is_close_to_one_encode_per_image(
    family: TinyFamily, record_property: pytest.RecordProperty
) -> None:
    """The bits depend on the shapes of GEMMs. The test records the difference as a property."""
    stock = family.model()
    call = family.call(0, 1, 2)
    with torch.no_grad():
        batched = stock_method(stock, "image")(**call)
    each = features(one_at_a_time(family, stock), call)
    spread = max((a - b).abs().max().item() for a, b in zip(tensors(batched), tensors(each), strict=True))
    record_property("max_abs_difference", spread)
    scale = max(tensor.abs().max().item() for tensor in tensors(each))
    assert spread <= 1e-5 * scale
