"""Runs steps through `Service`, and compares each token with a plain loop over tokens."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sglang_fakes.model import HIDDEN, VOCABULARY, Model, Table, rows_of
from sglang_fakes.requests import DataItem, Inputs
from vitcache.adapters.sglang import service
from vitcache.adapters.sglang.options import VARIABLE
from vitcache.adapters.sglang.service import Service
from vitcache.adapters.sglang.stock_cache import StockCache


class Window(NamedTuple):
    """The tokens of one request in a step. `inputs` None: a request without items."""

    inputs: Inputs | None
    start: int
    length: int


class Scene:
    """A `Service` with options of its own, and a model. `device` has the rows."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        model: Model | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        monkeypatch.setenv(VARIABLE, json.dumps(options))
        monkeypatch.delenv("VITCACHE_DISABLE", raising=False)
        monkeypatch.setattr(service, "STOCK_CACHE", StockCache())
        self.service = Service()
        self.model = Model() if model is None else model
        self.table = Table().to(device)
        self.device = torch.device(device)

    def step(
        self,
        *windows: Window,
        failed: Collection[DataItem] = (),
        left_out: Collection[DataItem] = (),
        padding: int = 0,
        truth: dict[int, Tensor] | None = None,
    ) -> None:
        """Run a step, and compare every token.

        `failed` items have zero rows, `left_out` ones have text rows. `truth` has the rows of items whose
        feature was released, by `id`.
        """
        ids = token_ids(windows, padding).to(self.device)
        found = self.embed(*windows, ids=ids)
        assert found is not None
        rows, info = found
        wanted, wanted_levels = self.truth(windows, failed, left_out, padding, truth or {})
        assert torch.equal(rows.cpu(), wanted)
        assert torch.equal(ids.cpu(), token_ids(windows, padding).clamp(0, VOCABULARY - 1))
        if self.model.levels:
            assert torch.equal(info["input_deepstack_embeds"].cpu(), wanted_levels)
        else:
            assert info == {}
        assert all(cache.leased_pages == 0 for cache in self.service.stats().caches)

    def embed(self, *windows: Window, ids: Tensor, table: Any = None) -> Any:
        requests = [window for window in windows if window.inputs is not None]
        batch = SimpleNamespace(
            mm_inputs=[window.inputs for window in windows],
            extend_seq_lens_cpu=[window.length for window in windows],
            rids=[f"id-{number}" for number in range(len(windows))],
        )
        return self.service.embed(
            [window.inputs for window in requests],
            [window.start for window in requests],
            [window.length for window in requests],
            ids,
            self.table if table is None else table,
            self.model,
            None,
            None,
            self.model.use_deepstack,
            batch=batch,
        )

    def truth(
        self,
        windows: tuple[Window, ...],
        failed: Collection[DataItem],
        left_out: Collection[DataItem],
        padding: int,
        known: dict[int, Tensor],
    ) -> tuple[Tensor, Tensor]:
        ids = token_ids(windows, padding).clamp(0, VOCABULARY - 1)
        rows = self.table.weight.detach().cpu()[ids].clone()
        levels = torch.zeros(len(ids), HIDDEN * self.model.levels)
        first = 0
        for window in windows:
            for item in [] if window.inputs is None else window.inputs.mm_items:
                if item is None or any(item is each for each in left_out) or not item.offsets:
                    continue
                source = known.get(id(item), item.precomputed_embeddings)
                if source is None and not any(item is each for each in failed):
                    source = rows_of(item.modality, item.feature, self.model.width(item.modality))
                for number, token in tokens_in(window, item):
                    place = first + token - window.start
                    row = torch.zeros(HIDDEN) if any(item is each for each in failed) else source[number]
                    rows[place] = row[:HIDDEN]
                    levels[place, : len(row) - HIDDEN] = row[HIDDEN:]
            first += window.length
        return rows, levels


def tokens_in(window: Window, item: DataItem) -> Iterator[tuple[int, int]]:
    """The tokens of an item that are in a window, each with the number of its row."""
    number = 0
    for start, last in item.offsets or ():
        for token in range(max(start, window.start), min(last + 1, window.start + window.length)):
            yield number + token - start, token
        number += last + 1 - start


def token_ids(windows: tuple[Window, ...], padding: int = 0) -> Tensor:
    """Random ids of text, with a hash value far beyond the vocabulary at each token of an item."""
    length = sum(window.length for window in windows) + padding
    ids = torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(8))
    first = 0
    for window in windows:
        for item in [] if window.inputs is None else window.inputs.mm_items:
            for _, token in () if item is None else tokens_in(window, item):
                ids[first + token - window.start] = 10**12 + token
        first += window.length
    return ids
