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
from placed_modes.unplaced import expected_reasons
from tiny_zoo import ZOO, ZooModel, stock_each
from torch import nn

from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.families import FAMILIES
from vitcache.adapters.feature_owner import MODALITIES, serves
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

PROMPTS = ((0,), (0, 1), (1, 0, 2), (2, 2))
"""The items of four prompts: a chat's first turn, its second, another order with a new item, duplicates."""

LEAST_CHANGE = 1e-2
"""Of the largest logit: how much the logits change at least if the pixels or samples of one item change."""

MODES = {"image": ("three images", "greedy"), "video": ("videos", "videos"), "audio": ("audio", "audio")}
"""The modes of `UNPLACED` that are those of this test: of the calls, and of `generate`."""

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
    is_placed = check_placement(stats, zoo, modality, len(PROMPTS) + len(apart))

    calls.clear()
    before = zoo.logits(model, prompt)
    for item in range(2):
        change = zoo.logits(model, zoo.changed(prompt, modality, 0, 1, item=item)) - before
        assert change.abs().max() >= LEAST_CHANGE * before.abs().max()
        assert len(calls) == 1 + item  # the other item is a hit
    note_exact(zoo, model, modality, is_placed=is_placed)


def test_newest_tested_transformers_has_every_family_of_the_zoo() -> None:
    pins = (Path(__file__).parents[2] / "requirements/dev.txt").read_text()
    newest = re.findall(r"^transformers==(.*)$", pins, re.M)
    if Version(transformers.__version__) < Version(*newest):
        pytest.skip(f"transformers {transformers.__version__} is older than {newest}")
    assert [zoo.lacks for zoo in ZOO.values() if not zoo.exists] == []


def check_placement(stats: AttachStats, zoo: ZooModel, modality: str, num_calls: int) -> bool:
    """Assert that all calls and `generate` are placed, or why they are not. Return whether they are."""
    in_calls, in_generate = (expected_reasons(zoo.name, mode) for mode in MODES[modality])
    reasons = in_calls or set()
    if zoo.options is not None and in_generate != set():  # else the forward gets no items in `generate`
        num_calls += 1
        reasons = reasons | (in_generate or set())
    assert stats.unplaced_calls.keys() == reasons
    assert stats.placed_calls == (0 if reasons else num_calls)
    assert sum(stats.unplaced_calls.values()) == (num_calls if reasons else 0)
    return not reasons


def is_named(zoo: ZooModel, model: nn.Module) -> bool:
    return zoo.features_owner(model).config.model_type in FAMILIES


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


def note_exact(zoo: ZooModel, model: nn.Module, modality: str, *, is_placed: bool) -> None:
    owner = zoo.features_owner(model)
    note(
        model_type=model.config.model_type,
        cls=type(model).__name__,
        by="name" if is_named(zoo, model) else "signature",
        exact=[modality],
        placed=[modality] * is_placed,
        has=[each for each in MODALITIES if serves(owner, each)],
        notes=[zoo.note] if zoo.note else [],
    )
