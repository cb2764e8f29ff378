"""Every family that `attach` serves: logits and tokens of the stock model, and one encode per item."""

from __future__ import annotations

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

CASES = [(zoo, modality) for zoo in ZOO.values() for modality in zoo.media]


@pytest.fixture(params=CASES, ids=[f"{zoo.name}-{modality}" for zoo, modality in CASES])
def case(request: pytest.FixtureRequest) -> tuple[ZooModel, str]:
    zoo, modality = request.param
    if not zoo.exists:
        pytest.skip(f"transformers {'.'.join(map(str, zoo.since))} is the first one that has {zoo.name}")
    return zoo, modality


@torch.no_grad()
def test_attach_gives_the_stock_logits_and_tokens_with_one_encode_per_item(
    case: tuple[ZooModel, str],
) -> None:
    zoo, modality = case
    stock, model = zoo.model(), zoo.model()
    use = stock_each(zoo, stock, modality)
    attachment = attach(model)
    for seeds, encoded in zip(PROMPTS, (1, 2, 3, 3), strict=True):
        prompt = zoo.prompt(stock, modality, *seeds)
        use(*seeds)
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
        assert attachment.stats().encoded == encoded
    use(0, 1)
    prompt = zoo.prompt(stock, modality, 0, 1)
    if zoo.generates:
        assert torch.equal(generated(model, prompt), generated(stock, prompt))
    stats = attachment.stats()
    assert (stats.encoded, stats.bypassed, attachment.cache.row_width) == (3, 0, zoo.row_width)

    name = next(iter(zoo.media[modality].make(0)))
    before = logits(model, prompt)
    changed = prompt | {name: prompt[name] + 1 * (prompt[name] != 0)}
    assert not torch.equal(logits(model, changed), before)  # the items decide the logits
    note_exact(zoo, model, modality)


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
