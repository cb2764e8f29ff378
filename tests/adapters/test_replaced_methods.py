"""The methods and hooks that `attach` installs for placed calls: when one is missing or replaced again."""

from __future__ import annotations

import logging
from types import FunctionType
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import generate, logits, pair, plain_kernels  # noqa: F401
from ready_models import each_kind, is_plain, placed, ready
from tiny_models import FAMILIES, one_at_a_time
from torch import nn
from transformers import GenerationMixin

from vitcache.adapters.replaced_methods import PRE_ENCODE
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

pre_encodes = pytest.mark.skipif(
    not hasattr(GenerationMixin, PRE_ENCODE), reason="this transformers encodes in the first forward"
)


def rename_method(patch: pytest.MonkeyPatch) -> None:
    """Give the method another name in this transformers, as a later release might."""
    caller = GenerationMixin._maybe_prepare_encoder_kwargs_for_generation
    code = caller.__code__
    names = tuple("_pre_encode" if name == PRE_ENCODE else name for name in code.co_names)
    renamed = FunctionType(code.replace(co_names=names), caller.__globals__)
    patch.setattr(GenerationMixin, "_pre_encode", getattr(GenerationMixin, PRE_ENCODE), raising=False)
    patch.setattr(GenerationMixin, caller.__name__, renamed)
    patch.delattr(GenerationMixin, PRE_ENCODE)


@pre_encodes
@each_kind
def test_generate_without_the_private_method_is_warned_of_once_and_not_placed(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rename_method(monkeypatch)
    with caplog.at_level(logging.WARNING, "vitcache.adapters"):
        stock, model, attachment, prompt = ready(name)
        expected = generate(stock, prompt, num_beams=2)
        for _ in range(2):
            for ours, theirs in zip(generate(model, prompt, num_beams=2), expected, strict=True):
                assert torch.equal(ours, theirs)
    [record] = caplog.records
    assert f"has no {PRE_ENCODE}: in generate, rows of images are assembled" in record.message
    stats = attachment.stats()
    assert stats.placed_calls == 1  # a forward outside of generate
    assert stats.unplaced_calls == {"the features were encoded before the call": 2}


@pre_encodes
@pytest.mark.parametrize("when", ["before", "after"])
def test_private_method_that_the_user_replaces_is_called_and_stays_after_detach(when: str) -> None:
    stock, model, attachment, prompt = ready("qwen3_vl")
    attachment.detach()
    calls: list[None] = []

    def replace() -> Any:
        inner = getattr(model, PRE_ENCODE)

        def own(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            return inner(*args, **kwargs)

        setattr(model, PRE_ENCODE, own)
        return own

    if when == "before":
        own = replace()
    attachment = attach(model)
    if when == "after":
        own = replace()
    expected = generate(stock, prompt)
    for _ in range(2):
        assert torch.equal(generate(model, prompt)[1], expected[1])
    assert attachment.stats().placed_calls == 2
    attachment.detach()
    assert vars(model)[PRE_ENCODE] is own
    generate(model, prompt)
    assert len(calls) == 3
    assert attachment.stats().placed_calls == 2


@pre_encodes
@torch.no_grad()
def test_interrupted_generate_leaves_no_lazy_features() -> None:
    _, model, attachment, prompt = ready("gemma3")
    attachment.cache.clear()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.base_model.vision_tower.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(model, prompt)
    hook.remove()
    features = model.get_image_features(prompt["pixel_values"], return_dict=True).pooler_output
    assert is_plain(features)


def state(model: nn.Module) -> list[dict[str, Any]]:
    """The attributes of each module; dicts, such as those of hooks, are copied."""
    return [
        {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}
        for module in model.modules()
    ]


@each_kind
def test_detach_restores_all_attributes_and_hooks_and_the_model_attaches_again(name: str) -> None:
    model = FAMILIES[name].model()
    prompt = FAMILIES[name].prompt(model, 0, 1)
    before = state(model)
    for _ in range(2):
        attachment = attach(model)
        assert state(model) != before
        logits(model, prompt)
        assert placed(attachment, lambda: logits(model, prompt)) == (1, {})
        attachment.detach()
        for module, attributes in zip(state(model), before, strict=True):
            assert {key: value for key, value in module.items() if key != "rope_deltas"} == {
                key: value for key, value in attributes.items() if key != "rope_deltas"
            }


def test_detach_leaves_the_hooks_of_the_user() -> None:
    model = FAMILIES["gemma3"].model()
    prompt, seen = FAMILIES["gemma3"].prompt(model, 0), []
    model.model.register_forward_hook(lambda *_: seen.append("before"))
    attachment = attach(model)
    model.model.register_forward_hook(lambda *_: seen.append("after"), prepend=True)
    model.model.register_forward_pre_hook(lambda *_: seen.append("pre"))
    logits(model, prompt)
    attachment.detach()
    logits(model, prompt)
    assert seen == ["pre", "after", "before"] * 2
    assert len(model.model._forward_hooks) == 2
    assert len(model.model._forward_pre_hooks) == 1


@each_kind
def test_attach_base_model_alone_gives_the_stock_tokens_in_generate(name: str) -> None:
    family = FAMILIES[name]
    stock, model = one_at_a_time(family, family.model()), family.model()
    attachment, prompt = attach(model.base_model), family.prompt(stock, 0, 1)
    assert torch.equal(logits(model, prompt), logits(stock, prompt))
    assert torch.equal(generate(model, prompt)[1], generate(stock, prompt)[1])
    stats = attachment.stats()
    assert stats.placed_calls + sum(stats.unplaced_calls.values()) == 2
