"""Placement with the options of `attach`: small, wide and host caches, shadow, splits, and "off"."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from caches import make_cache

pytest.importorskip("transformers")

from attached import Tower, generate, logits, pair, plain_kernels  # noqa: F401
from ready_models import each_kind, placed, ready
from tiny_models import FAMILIES, Call, TinyFamily, one_at_a_time
from torch import Tensor, nn

from vitcache.adapters import output_form
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


def most_rows(family: TinyFamily, *seeds: int) -> int:
    """The rows of the largest image."""
    model = family.model()
    prompts = (family.prompt(model, seed) for seed in seeds)
    return max(int((prompt["input_ids"] == 90).sum()) for prompt in prompts)


@each_kind
@pytest.mark.parametrize("capacity", ["no image", "one image", "two images"])
@torch.no_grad()
def test_small_cache_costs_the_encodes_of_placement_off(name: str, capacity: str) -> None:
    family = FAMILIES[name]
    largest = most_rows(family, 0, 1, 2)
    rows = {
        "no image": 1,
        "one image": largest,
        "two images": 2 * largest,
    }
    encodes, counts = [], []
    for placement in ("off", "auto"):
        cache = make_cache(rows[capacity], width=family.row_width, page_rows=1)
        stock, model, attachment, tower = pair(family, cache=cache, placement=placement)
        encodes.append([])
        for seeds in ((0, 1), (1, 0), (2, 1, 0), (2,), (0, 1)):
            prompt = family.prompt(stock, *seeds)
            assert torch.equal(logits(model, prompt), logits(stock, prompt))
            encodes[-1].append(tower.take())
        cache.check_integrity()
        counts.append(attachment.stats())
    assert encodes[0] == encodes[1]
    off, auto = counts
    assert (off.placed_calls, off.unplaced_calls) == (0, {})
    assert auto.placed_calls + sum(auto.unplaced_calls.values()) == 5
    assert set(auto.unplaced_calls) <= {"the cache is too small for all items of the call"}
    assert (auto.placed_calls > 0) == (capacity != "no image")


def test_disabled_calls_are_counted_as_not_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, model, attachment, prompt = ready("qwen3_vl")
    whole = FAMILIES["qwen3_vl"].model()
    monkeypatch.setenv("VITCACHE_DISABLE", "1")
    found: list[Tensor] = []
    assert placed(attachment, lambda: found.append(logits(model, prompt))) == (
        0,
        {"VITCACHE_DISABLE is set": 1},
    )
    assert torch.equal(found[0], logits(whole, prompt))
    assert torch.equal(generate(model, prompt)[1], generate(whole, prompt)[1])
    monkeypatch.setenv("VITCACHE_DISABLE", "0")
    assert placed(attachment, lambda: found.append(logits(model, prompt))) == (1, {})
    assert torch.equal(found[1], logits(stock, prompt))


@each_kind
@pytest.mark.parametrize(
    "options",
    [{"shadow_every": 1}, {"checksum": True, "host_bytes": "1MiB"}, {"placement": "off"}],
    ids=["shadow", "checksum", "off"],
)
def test_options_leave_the_stock_logits_and_tokens(name: str, options: Call) -> None:
    stock, model, attachment, prompt = ready(name, **options)
    expected = generate(stock, prompt)
    for _ in range(2):
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
        assert all(map(torch.equal, generate(model, prompt), expected))
    stats = attachment.stats()
    assert stats.placed_calls == (0 if "placement" in options else 5)
    assert stats.unplaced_calls == {}
    assert stats.shadow_difference == 0
    assert stats.shadowed == (8 if "shadow_every" in options else 0)


@each_kind
def test_entries_of_the_host_tier_are_placed(name: str) -> None:
    family = FAMILIES[name]
    rows = most_rows(family, 0, 1, 2)
    cache = make_cache(rows, 4 * rows, width=family.row_width, page_rows=1)
    stock, model, attachment, tower = pair(family, cache=cache)
    prompts = [family.prompt(stock, *seeds) for seeds in ((0, 1), (2,), (1, 0), (0, 1, 2))]
    for prompt in prompts * 2:
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
    assert tower.take() == 3
    stats = attachment.stats()
    assert stats.placed_calls + sum(stats.unplaced_calls.values()) == 8
    assert stats.placed_calls >= 4
    assert cache.stats().host.hits > 0
    cache.check_integrity()


@each_kind
@torch.no_grad()
def test_float32_cache_of_a_bfloat16_model_is_placed(name: str) -> None:
    family = FAMILIES[name]
    cache = make_cache(1000, width=family.row_width)
    stock, model = one_at_a_time(family, family.model(torch.bfloat16)), family.model(torch.bfloat16)
    # A tower with weights of several dtypes may have a cache of the widest.
    model.base_model.get_submodule(family.tower).unused = nn.Parameter(torch.zeros(1))
    attachment, prompt = attach(model, cache), family.prompt(stock, 0, 1)
    for _ in range(2):
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
        assert all(map(torch.equal, generate(model, prompt), generate(stock, prompt)))
    assert (attachment.stats().placed_calls, attachment.stats().unplaced_calls) == (4, {})


def test_calls_with_a_split_of_the_caller_are_placed() -> None:
    family = FAMILIES["gemma3"]

    def split(config: Any, arguments: Call) -> list[Call]:
        return [{"pixel_values": image[None]} for image in arguments["pixel_values"]]

    stock, model, attachment, _ = pair(family, splits={"image": split})
    prompt = family.prompt(stock, 0, 1)
    for _ in range(3):
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
    assert (attachment.stats().placed_calls, attachment.stats().unplaced_calls) == (3, {})


@each_kind
def test_placement_off_hooks_nothing_and_assembles_in_one_launch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches, scatter = [], output_form.scatter_embeddings
    monkeypatch.setattr(
        output_form, "scatter_embeddings", lambda *args, **kwargs: launches.append(scatter(*args, **kwargs))
    )
    model = FAMILIES[name].model()
    before = [dict(vars(module)) for module in model.modules()]
    attach(model, placement="off")
    added = [
        vars(module).keys() - attributes.keys()
        for module, attributes in zip(model.modules(), before, strict=True)
    ]
    assert set(itertools.chain(*added)) <= {"get_image_features", "get_video_features"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    prompt = FAMILIES[name].prompt(model, 0, 1)
    logits(model, prompt)
    launches.clear()
    logits(model, prompt)
    assert len(launches) == 1


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (None, TypeError, "placement must be a str, got NoneType"),
        (True, TypeError, "placement must be a str, got bool"),
        ("on", ValueError, 'placement is \'on\', it must be "auto" or "off"'),
    ],
)
def test_attach_wrong_placement_raises_and_leaves_the_model_alone(
    value: Any, error: type[Exception], match: str
) -> None:
    model = FAMILIES["gemma3"].model()
    before = dict(vars(model.model))
    with pytest.raises(error, match=match):
        attach(model, placement=value)
    assert vars(model.model) == before
