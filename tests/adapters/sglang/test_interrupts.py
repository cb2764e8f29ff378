"""A step that is interrupted at any line holds nothing, and the next step is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interrupts import interrupt
from sglang_fakes.model import HIDDEN, Model, Table
from sglang_fakes.requests import Inputs, Modality, image
from sglang_fakes.scene import Scene, Window, token_ids

from vitcache.adapters.sglang import service
from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.model_cache import StepShape, make_cache
from vitcache.adapters.sglang.model_memory import ModelMemory
from vitcache.adapters.sglang.model_step import ModelStep, StepCall
from vitcache.adapters.sglang.options import Options
from vitcache.testing import inspect

FOLDER = Path(service.__file__).parent
FILES = {str(path) for path in FOLDER.glob("*.py")}
SHAPE = StepShape(HIDDEN, 0, torch.float32, torch.device("cpu"))


def requests() -> list[Inputs]:
    rows = torch.ones(2, HIDDEN)
    items = [
        image(1, (0, 2), proxy=object()),
        image(2, (4, 5), identity=bytes(32)),
        image(3, (7, 8), modality=Modality.AUDIO),
        image(4, (9, 10), feature=None, precomputed_embeddings=rows),
        image(5, (12, 11)),
    ]
    return [Inputs(items), Inputs([image(1, (1, 3))])]


def test_interrupted_step_of_a_model_leaves_no_lease_and_no_claim() -> None:
    line, is_interrupted = 1, True
    while is_interrupted:
        model, table = Model(), Table()
        cache = make_cache(SHAPE, 1 << 12, Options())
        step = ModelStep(model, SHAPE, ModelMemory(cache, None), Options(), Counts())
        inputs = requests()
        rows = table.weight.detach()[:1].repeat(20, 1)
        call = StepCall(inputs, [0, 0], [13, 5], [0, 13], {})
        is_interrupted = interrupt(lambda: step.embed(call, model, None, rows), line, FILES)  # noqa: B023
        assert step.cache.stats().leased_pages == 0, line
        assert inspect(step.cache).num_claims == 0, line
        step.cache.check_integrity()
        again, fresh = rows.clone(), table.weight.detach()[:1].repeat(20, 1)
        step.embed(call, model, None, again)
        step.embed(call._replace(requests=requests()), model, None, fresh)
        image_tokens = [*range(3), 4, 5, *range(7, 11), *range(14, 17)]
        assert torch.equal(again[image_tokens], fresh[image_tokens]), line
        assert fresh[image_tokens].any(dim=1).all()
        step.close()
        line += 1
    assert line > 20


def test_interrupted_step_of_a_service_is_right_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    line, is_interrupted = 1, True
    while is_interrupted:
        scene = Scene(monkeypatch, Model(levels=1))
        windows = [Window(Inputs([image(1, (1, 3)), image(2, (5, 6), modality=Modality.AUDIO)]), 0, 8)]
        ids = token_ids(tuple(windows))
        is_interrupted = interrupt(lambda: scene.embed(*windows, ids=ids), line, FILES)  # noqa: B023
        scene.step(*windows)
        scene.step(*windows)
        assert len(scene.service.stats().caches) == 1, line
        assert scene.service.stats().errors == 0, line
        line += 1
    assert line > 20
