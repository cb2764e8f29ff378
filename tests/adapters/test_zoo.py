"""Every family that `attach` serves: logits and tokens of the stock model, and one encode per item."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import plain_kernels  # noqa: F401
from family_results import note
from tiny_zoo import ZOO, ZooModel, stock_each
from torch import Tensor, nn

from vitcache.adapters.families import FAMILIES, GRID_FAMILIES
from vitcache.adapters.feature_owner import MODALITIES, serves
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

PROMPTS = ((0,), (0, 1), (1, 0, 2), (2, 2))
"""The items of four prompts: a chat's first turn, its second, another order with a new item, duplicates."""

LEAST_CHANGE = 1e-2
"""Of the largest logit: how much the logits change at least if the pixels or samples of one item change."""

CASES = [(zoo, modality) for zoo in ZOO.values() for modality in zoo.media]


@pytest.fixture(params=CASES, ids=[f"{zoo.name}-{modality}" for zoo, modality in CASES])
def case(request: pytest.FixtureRequest) -> tuple[ZooModel, str]:
    zoo, modality = request.param
    if not zoo.exists:
        pytest.skip(f"transformers {'.'.join(map(str, zoo.since))} is the first one that has {zoo.name}")
    return zoo, modality


@torch.no_grad()
def test_attach_gives_the_stock_logits_and_tokens_with_one_encode_per_item(
    case: tuple[ZooModel, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, modality = case
    stock, model = zoo.model(), zoo.model()
    calls = count_calls(zoo, model, modality, monkeypatch)
    use = stock_each(zoo, stock, modality)
    attachment = attach(model)
    for seeds, encoded in zip(PROMPTS, (1, 2, 3, 3), strict=True):
        prompt = zoo.prompt(stock, modality, *seeds)
        use(*seeds)
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
        assert attachment.stats().encoded == encoded == len(calls)
    use(0, 1)
    prompt = zoo.prompt(stock, modality, 0, 1)
    if zoo.generates:
        assert torch.equal(generated(model, prompt), generated(stock, prompt))
    stats = attachment.stats()
    assert (stats.encoded, stats.bypassed, attachment.cache.row_width) == (3, 0, zoo.row_width)
    assert len(calls) == 3

    before = logits(model, prompt)
    for item in range(2):
        change = logits(model, zoo.changed(prompt, modality, 0, 1, item=item)) - before
        assert change.abs().max() >= LEAST_CHANGE * before.abs().max()
        assert len(calls) == 4 + item  # the other item is a hit
    note_exact(zoo, model, modality)


def count_calls(zoo: ZooModel, model: nn.Module, modality: str, patch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows with each call of the stock method of this model, whoever calls it."""
    owner, name, calls = zoo.features_owner(model), f"get_{modality}_features", []
    stock = getattr(type(owner), name)

    @functools.wraps(stock)
    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self is owner:
            calls.append(None)
        return stock(self, *args, **kwargs)

    patch.setattr(type(owner), name, counted)
    return calls


def note_exact(zoo: ZooModel, model: nn.Module, modality: str) -> None:
    owner = zoo.features_owner(model)
    note(
        model_type=model.config.model_type,
        cls=type(model).__name__,
        by="name" if owner.config.model_type in FAMILIES else "signature",
        exact=[modality],
        has=[each for each in MODALITIES if serves(owner, each)],
        chunked_prefill=owner.config.model_type in GRID_FAMILIES,
    )


def logits(model: nn.Module, prompt: dict) -> Tensor:
    return model(**prompt).logits


def generated(model: nn.Module, prompt: dict) -> Tensor:
    torch.manual_seed(0)  # a diffusion model begins with random tokens
    output = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    return output if isinstance(output, Tensor) else output.sequences
