"""`WeightsFingerprint`: it notices each kind of change, and keeps no replaced weights in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from operator import is_
from typing import Any

import pytest
import torch
from model_fingerprints import are_equal
from torch import nn

from vitcache.adapters.changes.model_changes import REPLACED
from vitcache.adapters.weights import WeightsFingerprint


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
        self.language_model = nn.Linear(2, 2)


def replace_a_table(model: Model) -> None:
    model.tower[0]._parameters = {
        name: nn.Parameter(w.clone()) for name, w in model.tower[0]._parameters.items()
    }


def set_data(model: Model) -> None:
    model.tower[0].weight.data = model.tower[0].weight.data.clone()


def set_data_of_inference(model: Model) -> None:
    with torch.inference_mode():
        data = torch.ones(2, 2)
    model.tower[0].weight.data = data


CHANGES: list[Callable[[Model], Any]] = [
    lambda model: model.tower[0].weight.detach().add_(1),
    lambda model: model.tower[1].running_mean.add_(1),
    lambda model: model.tower[1].register_buffer("another", torch.zeros(1)),
    lambda model: setattr(model.tower[0], "weight", nn.Parameter(model.tower[0].weight.detach())),
    lambda model: setattr(model.tower[1], "running_mean", None),
    lambda model: setattr(model.tower[2], "bias", nn.Parameter(torch.zeros(2))),
    lambda model: setattr(model, "tower", Model().tower),
    lambda model: model.tower.append(nn.Linear(2, 2)),
    lambda model: model.tower.to(torch.float64),
    lambda model: setattr(model, "config", type("Config", (), {"_attn_implementation": "eager"})),
    replace_a_table,
    set_data,
    set_data_of_inference,
]


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_notices_the_change(change: Callable[[Model], Any]) -> None:
    model = Model()
    before = WeightsFingerprint(model, model.tower)
    assert before.is_current()
    change(model)
    assert not before.is_current()
    after = WeightsFingerprint(model, model.tower)
    assert not are_equal(before, after)
    assert after.is_current()


def test_fingerprint_ignores_a_change_of_the_language_model() -> None:
    model = Model()
    before = WeightsFingerprint(model, model.tower)
    model.language_model.weight.detach().add_(1)
    assert before.is_current()


def test_offloaded_weights_that_were_replaced_count_as_unchanged() -> None:
    model = Model()
    model.tower.to("meta")
    before = WeightsFingerprint(model, model.tower)
    model.tower[0].weight = nn.Parameter(torch.empty(2, 2, device="meta"))
    assert not before.is_current()
    assert are_equal(before, WeightsFingerprint(model, model.tower))
    model.tower[0].weight = nn.Parameter(torch.empty(2, 2, device="meta", dtype=torch.float64))
    assert not are_equal(before, WeightsFingerprint(model, model.tower))


def test_conversion_and_back_frees_the_storages_and_is_noticed() -> None:
    model = Model()
    weights = list(model.tower.parameters())
    before = WeightsFingerprint(model, model.tower)
    model.tower.to(torch.bfloat16)
    model.tower.to(torch.float32)
    assert all(map(is_, model.tower.parameters(), weights))
    assert not before.is_current()
    assert WeightsFingerprint(model, model.tower).change_since(before) == (REPLACED, "tower.0.weight")


def test_fingerprint_does_not_keep_weights_from_being_swapped() -> None:
    model, other = Model(), Model()
    before = WeightsFingerprint(model, model.tower)
    torch.utils.swap_tensors(model.tower[0].weight, other.tower[0].weight)
    assert not before.is_current()
    assert WeightsFingerprint(model, model.tower).change_since(before) == (REPLACED, "tower.0.weight")


@pytest.mark.parametrize("part", ["tower", "module", "parameter"])
def test_fingerprint_does_not_keep_replaced_weights_in_memory(part: str) -> None:
    model = Model()
    fingerprint = WeightsFingerprint(model, model.tower)
    weight = weakref.ref(model.tower[0].weight)
    if part == "tower":
        model.tower = Model().tower
    elif part == "module":
        model.tower[0] = nn.Linear(2, 2)
    else:
        model.tower[0].weight = nn.Parameter(torch.zeros(2, 2))
    gc.collect()
    assert weight() is None
    assert not fingerprint.is_current()
