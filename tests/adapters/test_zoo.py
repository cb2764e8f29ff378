"""Every family that `attach` serves: the stock logits and tokens, one encode per item, and placed calls."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from attached import plain_kernels  # noqa: F401
from family_results import note
from packaging.version import Version
from tiny_zoo import ZOO, ZooModel, stock_each
from torch import nn

from vitcache.adapters.families import FAMILIES
from vitcache.adapters.feature_owner import MODALITIES, serves
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

PROMPTS = ((0,), (0, 1), (1, 0, 2), (2, 2))
"""The items of four prompts: a chat's first turn, its second, another order with a new item, duplicates."""

LEAST_CHANGE = 1e-2
"""Of the largest logit: how much the logits change at least if the pixels or samples of one item change."""

PADDED = "the features are padded, for several layers, or on another device than the cache"

UNPLACED = {
    ("gemma3n", "audio"): {PADDED},
    ("gemma4", "audio"): {PADDED},
    ("gemma4_unified", "audio"): {PADDED},
    ("granite4_vision", "image"): {PADDED, "the features were encoded before the call"},
    ("llama4", "image"): {"linear reads the features"},
    ("llava_next_video", "video"): {"flatten reads the features"},
    ("molmo2", "image"): {"reshape reads the features"},
    ("molmo2", "video"): {"reshape reads the features"},
    ("video_llama_3", "video"): {"__getitem__ reads the features"},
}
"""The reasons why no call of a family's test is placed. The calls of every other named family are."""

if Version(transformers.__version__) < Version("5.23"):  # this forward joins each video with a line break
    UNPLACED["llava_onevision", "video"] = {"cat reads the features"}

MERGES_BEFORE_FORWARD = {"florence2"}
"""Families whose `generate` merges features itself, before it calls the forward."""

CASES = [(zoo, modality) for zoo in ZOO.values() for modality in zoo.media]


@pytest.fixture(params=CASES, ids=[f"{zoo.name}-{modality}" for zoo, modality in CASES])
def case(request: pytest.FixtureRequest) -> tuple[ZooModel, str]:
    zoo, modality = request.param
    if not zoo.exists:
        pytest.skip(f"transformers {transformers.__version__} lacks {zoo.lacks}")
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
    # The first call with several items encodes them together, too, and compares; so does the first one that
    # repeats one item.
    is_checked = not is_named(zoo, model)
    for seeds, encoded, checked in zip(PROMPTS, (1, 2, 3, 3), (0, 1, 1, 2), strict=True):
        prompt = zoo.prompt(stock, modality, *seeds)
        use(*seeds)
        assert torch.equal(zoo.logits(model, prompt), zoo.logits(stock, prompt))
        assert attachment.stats().encoded == encoded
        assert len(calls) == encoded + is_checked * checked
    for seeds in (apart := zoo.media[modality].apart):
        prompt = zoo.prompt(stock, modality, *seeds)
        use(*seeds)
        assert torch.equal(zoo.logits(model, prompt), zoo.logits(stock, prompt))
    num_items = len({seed for seeds in (*PROMPTS, *apart) for seed in seeds})
    use(0, 1)
    prompt = zoo.prompt(stock, modality, 0, 1)
    if zoo.options is not None:
        assert torch.equal(zoo.generated(model, prompt), zoo.generated(stock, prompt))
    stats = attachment.stats()
    assert (stats.encoded, stats.bypassed, attachment.cache.row_width) == (num_items, 0, zoo.row_width)
    num_calls = len(PROMPTS) + len(apart) + has_forward_in_generate(zoo)
    reasons = reasons_against_placement(zoo, model, modality)
    assert stats.placed_calls == (0 if reasons else num_calls)
    assert stats.unplaced_calls.keys() <= reasons
    assert stats.placed_calls + sum(stats.unplaced_calls.values()) == num_calls

    calls.clear()
    before = zoo.logits(model, prompt)
    for item in range(2):
        change = zoo.logits(model, zoo.changed(prompt, modality, 0, 1, item=item)) - before
        assert change.abs().max() >= LEAST_CHANGE * before.abs().max()
        assert len(calls) == 1 + item  # the other item is a hit
    note_exact(zoo, model, modality)


def test_newest_tested_transformers_has_every_family_of_the_zoo() -> None:
    pins = (Path(__file__).parents[2] / "requirements/dev.txt").read_text()
    newest = re.findall(r"^transformers==(.*)$", pins, re.M)
    if Version(transformers.__version__) < Version(*newest):
        pytest.skip(f"transformers {transformers.__version__} is older than {newest}")
    assert [zoo.lacks for zoo in ZOO.values() if not zoo.exists] == []


def is_named(zoo: ZooModel, model: nn.Module) -> bool:
    return zoo.features_owner(model).config.model_type in FAMILIES


def has_forward_in_generate(zoo: ZooModel) -> bool:
    """Whether `generate` exists, and calls the forward with the items."""
    return zoo.options is not None and zoo.name not in MERGES_BEFORE_FORWARD


def reasons_against_placement(zoo: ZooModel, model: nn.Module, modality: str) -> set[str]:
    """The reasons that the attached model must count. An empty set: each call is placed."""
    if not is_named(zoo, model):
        return {"no test shows that this model can be placed"}
    return UNPLACED.get((zoo.name, modality), set())


def count_calls(zoo: ZooModel, model: nn.Module, modality: str, patch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows with each call of this model's stock method."""
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
        by="name" if is_named(zoo, model) else "signature",
        exact=[modality],
        placed=[] if reasons_against_placement(zoo, model, modality) else [modality],
        has=[each for each in MODALITIES if serves(owner, each)],
        notes=[zoo.note] if zoo.note else [],
    )
