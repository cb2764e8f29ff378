"""Lazy features and users: `image_hidden_states` of outputs, and calls of stock methods by users."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import image_rows, logits, plain_kernels  # noqa: F401
from ready_models import each_kind, is_plain, placed, ready
from tiny_models import FAMILIES, IMAGE, Call
from tiny_zoo import ZOO, stock_each
from torch import Tensor

from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

WITH_STATES = ("llava", "llava_next", "internvl", "gemma3", "paligemma", "idefics3", "smolvlm", "mistral3")


@pytest.mark.parametrize("name", WITH_STATES)
@torch.no_grad()
def test_output_has_the_image_hidden_states_of_the_stock_output(name: str) -> None:
    zoo = ZOO[name]
    stock, model = zoo.model(), zoo.model()
    attachment, use = attach(model), stock_each(zoo, stock, "image")
    prompt = zoo.prompt(stock, "image", 0, 1)
    use(0, 1)
    expected = states(stock(**prompt))
    assert all(value is None for value in (states(model(**text(prompt))), states(stock(**text(prompt)))))
    first, second, third, fourth, last = (states(model(**prompt)) for _ in range(5))
    assert (first.shape, first.stride(), first.dtype) == (
        expected.shape,
        expected.stride(),
        expected.dtype,
    )
    assert torch.equal(first, expected)
    assert torch.equal(second[-1], expected[-1])
    assert torch.equal(pickle.loads(pickle.dumps(third)), expected)
    assert attachment.stats().placed_calls == 5
    attachment.cache.clear()
    assert torch.equal(fourth, expected)
    attachment.cache.close()
    assert torch.equal(last, expected)


def states(output: Any) -> Any:
    found = output.image_hidden_states
    found = getattr(found, "pooler_output", found)  # SmolVLM's forward returns the output of the stock method
    return torch.cat(found) if isinstance(found, list) else found


def text(prompt: Call) -> Call:
    ids = prompt["input_ids"].where(prompt["input_ids"] != IMAGE, 5)
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return tokens | ({"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in prompt else {})


@each_kind
@torch.no_grad()
def test_features_asked_for_by_the_user_have_memory(name: str) -> None:
    stock, model, attachment, prompt = ready(name)
    call, found = FAMILIES[name].call(0, 1), []

    def ask(*_: Any) -> None:
        found.append(model.get_image_features(**call, return_dict=True).pooler_output)

    hooks = [
        model.base_model.language_model.register_forward_pre_hook(ask),
        model.get_input_embeddings().register_forward_pre_hook(ask),
        model.base_model.register_forward_pre_hook(ask),
        model.register_forward_hook(ask),
    ]
    assert placed(attachment, lambda: logits(model, prompt)) == (1, {})
    for hook in hooks:
        hook.remove()
    ask()
    assert len(found) == 5
    assert all(is_plain(features) for features in found)
    assert torch.equal(logits(model, prompt), logits(stock, prompt))


@each_kind
def test_features_asked_for_by_another_thread_have_memory(name: str) -> None:
    _, model, _, prompt = ready(name)
    call, found = FAMILIES[name].call(0, 1), []

    def ask() -> None:
        with torch.no_grad():
            found.append(model.get_image_features(**call, return_dict=True).pooler_output)

    def ask_in_a_thread(*_: Any) -> None:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    model.base_model.language_model.register_forward_pre_hook(ask_in_a_thread)
    logits(model, prompt)
    assert len(found) == 1
    assert is_plain(found[0])


@torch.no_grad()
def test_forward_of_a_class_of_the_user_gets_features_with_memory() -> None:
    _, model, attachment, prompt = ready("gemma3")
    found: list[Tensor] = []

    class Own(type(model.base_model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, pixel_values: Tensor, **options: Any) -> Any:
            embeds = self.get_input_embeddings()(input_ids)
            found.append(self.get_image_features(pixel_values, return_dict=True).pooler_output)
            mask = (input_ids == IMAGE)[..., None].expand_as(embeds)
            merged = embeds.masked_scatter(mask, found[0])
            return super().forward(**options | {"inputs_embeds": merged})

    model.base_model.__class__ = Own
    assert placed(attachment, lambda: logits(model, prompt)) == (0, {})
    assert is_plain(found[0])
    assert torch.equal(found[0], image_rows(model, FAMILIES["gemma3"].call(0, 1)).view_as(found[0]))
