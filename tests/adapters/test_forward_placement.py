"""`ForwardPlacement`: which calls of a model are placed, and that no call writes to tensors of its caller."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import generate, image_rows, logits, pair, plain_kernels  # noqa: F401
from ready_models import each_kind, is_plain, placed, ready
from tiny_models import FAMILIES, IMAGE
from torch import Tensor

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


@each_kind
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@torch.no_grad()
def test_forward_that_raised_leaves_no_lazy_features(name: str, error: type[BaseException]) -> None:
    stock, model, attachment, prompt = ready(name)

    def fail(*_: Any) -> None:
        raise error

    hook = model.base_model.language_model.register_forward_pre_hook(fail)
    with pytest.raises(error):
        model(**prompt)
    hook.remove()
    features = model.get_image_features(**FAMILIES[name].call(0, 1), return_dict=True).pooler_output
    assert is_plain(features)
    embeds = torch.randn(*prompt["input_ids"].shape, 32)
    before = embeds.clone()
    embeds.masked_scatter(
        (prompt["input_ids"] == IMAGE)[..., None], image_rows(model, FAMILIES[name].call(0, 1))
    )
    assert torch.equal(embeds, before)
    expected = logits(stock, prompt)
    assert placed(attachment, lambda: logits(model, prompt)) == (1, {})
    assert torch.equal(logits(model, prompt), expected)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@torch.no_grad()
def test_merge_of_kept_features_by_the_user_does_not_write_in_place(
    error: type[BaseException] | None,
) -> None:
    _, model, _, prompt = ready("gemma3")
    features = model(**prompt).image_hidden_states
    embeds = torch.randn(*prompt["input_ids"].shape, features.shape[-1])
    before, found = embeds.clone(), []
    mask = (prompt["input_ids"] == IMAGE)[..., None].expand_as(embeds)

    def merge(*_: Any) -> None:
        if error is not None:
            raise error
        found.append(embeds.masked_scatter(mask, features))

    hook = model.base_model.language_model.register_forward_pre_hook(merge)
    with nullcontext() if error is None else pytest.raises(error):
        model(**prompt)
    hook.remove()
    if error is not None:  # no hook tells that the forward has ended
        found.append(embeds.masked_scatter(mask, features))
    assert torch.equal(embeds, before)
    assert torch.equal(found[0][mask], features.flatten())


@each_kind
@torch.no_grad()
def test_prompt_with_too_few_image_tokens_raises_the_stock_error(name: str) -> None:
    stock, model, attachment, prompt = ready(name)
    ids = prompt["input_ids"].clone()
    ids[0, (ids == IMAGE)[0].nonzero()[0]] = 5
    wrong = prompt | {"input_ids": ids}
    with pytest.raises(Exception, match="mage") as expected:
        stock(**wrong)
    with pytest.raises(type(expected.value)) as error:
        model(**wrong)
    assert str(error.value) == str(expected.value)
    assert attachment.stats().unplaced_calls == {"the forward did not merge features": 1}
    assert torch.equal(logits(model, prompt), logits(stock, prompt))


@each_kind
def test_calls_with_gradients_and_in_training_mode_are_stock_calls(name: str) -> None:
    _, model, attachment, prompt = ready(name)
    found: list[Tensor] = []
    assert placed(attachment, lambda: found.append(model(**prompt).logits)) == (
        0,
        {"gradients are enabled": 1},
    )
    whole = FAMILIES[name].model()  # encodes both images together, as the stock method that serves the call
    assert torch.equal(found[0], whole(**prompt).logits)
    assert found[0].requires_grad
    model.train()
    assert placed(attachment, lambda: logits(model, prompt)) == (0, {"the model is in training mode": 1})


@each_kind
@torch.no_grad()
def test_embeddings_of_the_caller_are_not_written(name: str) -> None:
    stock, model, attachment, prompt = ready(name)
    logits(stock, prompt)  # without ids, Qwen's positions are those of the last call
    embeds = stock.get_input_embeddings()(prompt.pop("input_ids"))
    prompt.pop("mm_token_type_ids", None)
    given = embeds.clone()
    found: list[Tensor] = []
    reason = {"the caller gave inputs_embeds": 1}
    assert placed(attachment, lambda: found.append(logits(model, prompt | {"inputs_embeds": given}))) == (
        0,
        reason,
    )
    assert torch.equal(given, embeds)
    assert torch.equal(found[0], logits(stock, prompt | {"inputs_embeds": embeds}))


def test_threads_with_forwards_and_generates_get_the_results_of_one_thread() -> None:
    family = FAMILIES["qwen3_vl"]
    stock, model, attachment, _ = pair(family)
    prompts = [family.prompt(stock, *seeds) for seeds in ((0, 1), (1, 2), (2, 0), (0, 1, 2))]
    expected = [(logits(stock, prompt), *generate(stock, prompt)) for prompt in prompts]
    for seed in range(3):
        logits(model, family.prompt(stock, seed))
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in prompts]

    def run(number: int) -> None:
        for _ in range(3):
            found[number].append((logits(model, prompts[number]), *generate(model, prompts[number])))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(prompts))]
    before = attachment.stats().placed_calls
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == 3
        for each in ours:
            assert all(map(torch.equal, each, theirs))
    stats = attachment.stats()
    assert (stats.placed_calls - before, stats.unplaced_calls) == (2 * 3 * len(prompts), {})


@torch.no_grad()
def test_forward_in_a_hook_of_a_forward_gives_both_stock_results() -> None:
    stock, model, _, prompt = ready("qwen3_vl")
    other = FAMILIES["qwen3_vl"].prompt(stock, 1)
    found: list[Tensor] = []

    def run_other(*_: Any) -> None:
        if not found:
            found.append(torch.empty(0))
            found.append(model(**other).logits)

    model.base_model.visual.register_forward_hook(run_other)
    model.get_input_embeddings().register_forward_pre_hook(run_other)
    assert torch.equal(logits(model, prompt), logits(stock, prompt))
    assert torch.equal(found[1], logits(stock, other))


@torch.no_grad()
def test_two_attached_models_in_one_thread_are_placed_apart() -> None:
    (stock, first, one, prompt), (_, second, two, _) = ready("qwen3_vl"), ready("qwen3_vl")
    seen: list[Tensor] = []
    first.base_model.language_model.register_forward_pre_hook(lambda *_: seen.append(logits(second, prompt)))
    assert placed(one, lambda: placed(two, lambda: seen.append(logits(first, prompt)))) == (1, {})
    expected = logits(stock, prompt)
    assert [torch.equal(each, expected) for each in seen] == [True, True]
    assert two.stats().placed_calls == 2


@torch.no_grad()
def test_assisted_generate_with_an_attached_assistant_gives_the_stock_tokens() -> None:
    (stock, model, _, prompt), (helper, assistant, other, _) = ready("internvl"), ready("internvl")
    expected = generate(stock, prompt, do_sample=False, assistant_model=helper)
    for ours, theirs in zip(
        generate(model, prompt, do_sample=False, assistant_model=assistant), expected, strict=True
    ):
        assert torch.equal(ours, theirs)
    assert other.stats().placed_calls > 0
