"""`RowTraffic` counts the bytes of rows that operations and launches read and write."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding

from vitcache import Span, embed_tokens, scatter_embeddings
from vitcache.bench.harness.row_traffic import RowTraffic

HIDDEN, PLACEHOLDER = 4, 7
ROW_BYTES = HIDDEN * torch.bfloat16.itemsize
IDS = torch.tensor([[1, PLACEHOLDER, PLACEHOLDER, 2, 3]])


def rows(count: int) -> Tensor:
    return torch.randn(count, HIDDEN, dtype=torch.bfloat16)


WEIGHT, TWO, THREE, FIVE = rows(9), rows(2), rows(3), rows(5)


def place() -> Tensor:
    embeds = embedding(IDS, WEIGHT)
    return scatter_embeddings(embeds, [TWO], [Span(1, 2)])


def place_with_packed_levels() -> Tensor:
    embeds = embedding(IDS, WEIGHT)
    packed = torch.empty(1, 2, HIDDEN, dtype=torch.bfloat16)
    scatter_embeddings(embeds, [torch.cat([TWO, TWO], dim=1)], [Span(1, 2)], deepstack_rows=packed)
    return packed


def copy_in() -> Tensor:
    embeds = embedding(IDS, WEIGHT)
    embeds[0, 1:3].copy_(TWO)
    return embeds


@pytest.mark.parametrize(
    ("call", "num_rows"),
    [
        (lambda: torch.cat([TWO, THREE]), 5 + 5),
        (lambda: FIVE.clone(), 5 + 5),
        (lambda: FIVE.masked_scatter(IDS.view(-1, 1) == PLACEHOLDER, TWO), 5 + 2 + 5 + 2),
        (lambda: embedding(IDS, WEIGHT), 5 + 5),
        (copy_in, 5 + 5 + 2 + 2),
        (place, 5 + 5 + 2 + 2),
        (place_with_packed_levels, 5 + 5 + (4 + 4) + (4 + 4)),
        (lambda: FIVE.view(1, 5, HIDDEN)[0, 1:].unbind(), 0),
        (lambda: torch.empty(5, HIDDEN, dtype=torch.bfloat16), 0),
        (lambda: torch.cat([IDS, IDS]) == 1, 0),
    ],
    ids=["cat", "clone", "scatter", "embedding", "copy", "launch", "packed levels", "view", "empty", "ids"],
)
def test_row_traffic_counts_what_a_call_reads_and_writes(call: Callable[[], object], num_rows: int) -> None:
    with RowTraffic(torch.bfloat16, PLACEHOLDER) as traffic:
        call()
    assert traffic.total() == num_rows * ROW_BYTES


def test_row_traffic_rows_that_no_launch_writes_are_nan_in_the_result() -> None:
    with RowTraffic(torch.bfloat16, PLACEHOLDER):
        embeds = embedding(IDS, WEIGHT)
        placed = embed_tokens(IDS, WEIGHT, [TWO], [Span(1, 2)])
    assert embeds.isnan().all(-1).tolist() == (IDS == PLACEHOLDER).tolist()
    assert not placed.isnan().any()
