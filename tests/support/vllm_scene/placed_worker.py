"""A worker whose placement writes `inputs_embeds`, compared with a loop over tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcache.adapters.vllm.settings import Settings
from vitcache.adapters.vllm.step_placement import StepPlacement
from vitcache.adapters.vllm.text_rows import TextRows
from vllm_scene.engine import Window
from vllm_scene.store_worker import StoreWorker, make_rows
from vllm_scene.worker import Broken, Content

NUM_IDS = 50


def make_batch(*requests: tuple[str, int, int, int], num_dropped: int = 0) -> SimpleNamespace:
    """The fields of vLLM's `InputBatch` for requests: name, first and last token of the step, and prompt.

    vLLM has dropped the last `num_dropped` tokens again.
    """
    names, starts, stops, prompts = zip(*requests, strict=True) if requests else ((),) * 4
    lengths = np.subtract(stops, starts, dtype=np.int32)
    firsts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    firsts[-1] -= num_dropped
    return SimpleNamespace(
        req_ids=list(names),
        num_tokens=int(lengths.sum()) - num_dropped,
        num_scheduled_tokens=lengths,
        num_computed_tokens_np=np.array(starts, dtype=np.int32),
        prefill_len_np=np.array(prompts, dtype=np.int32),
        query_start_loc_np=firsts,
    )


class PlacedWorker(StoreWorker):
    """One rank of Model Runner V2: encodes in micro-batches, then one launch writes all rows.

    `levels` deepstack levels share the width of a row with `inputs_embeds`. If `by_model`, the model looks
    text rows up.
    """

    def __init__(
        self, settings: Settings, *, levels: int = 0, by_model: bool = False, rng: random.Random | None = None
    ) -> None:
        super().__init__(settings, places_rows=True)
        self.rng = rng or random.Random(0)
        self.hidden = settings.row_width // (1 + levels)
        self.levels = levels
        self.table = torch.randn(NUM_IDS, self.hidden, generator=torch.Generator().manual_seed(1))
        module = SimpleNamespace(weight=self.table)
        self.features: dict[str, Sequence[Any]] = {}
        self.placement = StepPlacement(
            TextRows(lambda ids: self.table[ids.long()], None if by_model else module), self.features
        )
        self.fresh: list[str] = []
        self.batch: list[str] = []
        self.num_placed = 0

    def encode(self, identifier: str, content: Content, *, is_v2: bool) -> None:
        if identifier in self.rows:
            return
        if self.batch and self.rng.random() < 0.5:  # the next micro-batch
            with self.store.encoding():
                self.save_all(self.batch)
            self.batch = []
        _, name, num_rows, weights = content
        rows = make_rows(name, num_rows, weights, self.settings.row_width)
        self.rows[identifier] = torch.cat([rows, torch.full_like(rows, torch.nan)])[:num_rows]
        self.fresh.append(identifier)
        self.batch.append(identifier)

    def place(self, windows: Sequence[Window]) -> None:
        """Write the rows of a step, and compare them. Then save the other fresh rows, as vLLM does."""
        self.store.reserve([identifier for identifier in self.batch if not self.is_refused(identifier)])
        self.features.update((window.request.request_id, window.request.mm_features) for window in windows)
        num_tokens = sum(window.stop - window.start for window in windows)
        batch = make_batch(
            *(
                (window.request.request_id, window.start, window.stop, window.request.num_tokens)
                for window in windows
            )
        )
        ids = torch.tensor([self.rng.randrange(NUM_IDS) for _ in range(num_tokens)], dtype=torch.int32)
        out = torch.full((num_tokens, self.hidden), torch.nan)
        levels = [torch.zeros(num_tokens, self.hidden) for _ in range(self.levels)]
        self.num_placed += self.placement.place(batch, ids, out, levels or None, self.store)
        expected = self.expected(windows, ids)
        if not torch.equal(torch.cat([out, *levels], dim=1), expected):
            raise Broken(f"step {self.orders.step}: inputs_embeds has wrong rows")
        self.save_all(self.fresh)
        self.fresh, self.batch = [], []

    def expected(self, windows: Sequence[Window], ids: Tensor) -> Tensor:
        """Return `inputs_embeds` and the levels side by side, by a loop over tokens."""
        expected = torch.zeros(len(ids), self.settings.row_width)
        expected[:, : self.hidden] = self.table[ids.long()]
        first = 0
        for request, start, stop, weights in windows:
            for feature in request.mm_features:
                rows = make_rows(feature.identifier, feature.num_rows, weights, self.settings.row_width)
                for row, token in enumerate(range(feature.offset, feature.end)):
                    if start <= token < stop:
                        expected[first + token - start] = rows[row]
            first += stop - start
        return expected

    def save_all(self, identifiers: Sequence[str]) -> None:
        for identifier in identifiers:
            if not self.is_refused(identifier):
                self.store.save(identifier)

    def is_refused(self, identifier: str) -> bool:
        order = self.orders.saves.get(identifier)
        return order is not None and self.refuses(order.key)
