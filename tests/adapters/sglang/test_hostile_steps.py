"""Random requests with wrong offsets, features, rows, data and encoders end no step, and spare other ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sglang_fakes.model import HIDDEN, Model, rows_of
from sglang_fakes.requests import DataItem, Inputs, Modality, feature, image
from sglang_fakes.scene import Scene, Window

TOKENS = [0, 2, 5, -1, 2**31, 2**60, 2**63, 2**70, True, None, 1.5, "a", np.int64(3), torch.tensor(2)]
OFFSETS = [
    None,
    [],
    (),
    3,
    "ab",
    [[1]],
    [(1, 2, 3)],
    {1: 2},
    [{1, 2}],
    np.array([[1, 2]]),
    torch.tensor([[1, 2]]),
]
FEATURES = [
    *(None, object(), "x", b"png", [], {"a": 1}, torch.zeros(0, 3), torch.zeros(2, 3, device="meta")),
    *(torch.eye(3).to_sparse(), np.array([object()]), [feature(1, 2)], feature(1, 2).numpy(), feature(1, 4)),
]
ROWS = [
    *(torch.ones(2, HIDDEN), torch.ones(HIDDEN), torch.tensor(1.0), torch.ones(2, HIDDEN + 1), "x", object()),
    *(torch.ones(2, HIDDEN).to_sparse(), np.array([[None]]), [torch.ones(2, HIDDEN)], np.ones((2, HIDDEN))),
]
DATA = [
    1,
    None,
    object(),
    {1: 2},
    {"a": [object()]},
    np.int64(2),
    Modality.IMAGE,
    {1},
    np.array(["a"]),
    "\ud800",
]
HASHES = [None, 1, 2**64, -1, "x", 1.5, np.int64(3)]
IDENTITIES = [bytes(32), b"", bytearray(32), "x", object()]


def refuse(rows: list[torch.Tensor]) -> Any:
    raise OSError(len(rows))


FORMS: list[Callable[[list[torch.Tensor]], Any]] = [
    *(list, torch.cat, refuse, lambda rows: None, lambda rows: [None] * len(rows)),
    *(lambda rows: [part[1:] for part in rows], lambda rows: torch.cat(rows)[1:]),
    *(lambda rows: [part.to_sparse() for part in rows], lambda rows: [part.double() for part in rows]),
]


class Chance:
    """Draws hostile values."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def draw(self, values: list[Any], probability: float, otherwise: Any = None) -> Any:
        return self.random.choice(values) if self.random.random() < probability else otherwise

    def offsets(self) -> Any:
        pairs = [(self.random.choice(TOKENS), self.random.choice(TOKENS)) for _ in range(2)]
        first = self.random.randrange(10)
        return self.draw([*OFFSETS, pairs[:1], pairs], 0.5, [(first, first + 1), (first + 3, first + 3)])

    def item(self) -> DataItem:
        made = DataItem(self.random.choice(list(Modality)), offsets=self.offsets())
        made.feature = self.draw(FEATURES, 0.6, feature(self.random.randrange(3), 3))
        made.precomputed_embeddings = self.draw(ROWS, 0.3)
        made.hash, made.identity = self.draw(HASHES, 0.4), self.draw(IDENTITIES, 0.2)
        for name in ("grid", "scale")[: self.random.randrange(3)]:
            setattr(made, name, self.random.choice(DATA))
        return made


@pytest.mark.parametrize("seed", range(40))
def test_random_wrong_requests_end_no_step_and_spare_the_right_one(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = Chance(seed)
    scene = Scene(
        monkeypatch,
        Model(levels=seed % 2),
        trust_engine_hash=chance.random.random() < 0.3,
        device_bytes=chance.random.choice([1, 500, 1 << 16]),
        max_rows_per_encode=chance.random.choice([1, 8, 4096]),
    )
    wrong = [Inputs([chance.item() for _ in range(chance.random.randrange(4))]) for _ in range(3)]
    good = Window(Inputs([image(99, (2, 4), modality=Modality.AUDIO)]), 0, 6)
    for form in [*chance.random.sample(FORMS, 3), list]:
        scene.model.form = form
        if form is list:
            scene.service.clear()
        lengths = [chance.random.randrange(14) for _ in wrong]
        starts = [chance.random.randrange(6) for _ in wrong]
        windows = [Window(*each) for each in zip(wrong, starts, lengths, strict=True)]
        ids = torch.full((sum(lengths) + 6,), 10**12)
        rows, _ = scene.embed(*windows, good, ids=ids)
        assert all(cache.leased_pages == 0 for cache in scene.service.stats().caches)
    first = sum(lengths)
    assert torch.equal(rows[first + 2 : first + 5], rows_of(Modality.AUDIO, feature(99, 3)))
    assert scene.service.stats().steps == 4
