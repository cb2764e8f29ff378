"""`LazyScene`: lazy features beside plain tensors of the same values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from caches import make_cache
from torch import Tensor, nn

from vitcache.adapters import (
    lazy_operations,  # noqa: F401  (it fills the table of operations)
    placed_call,
)
from vitcache.adapters.lazy_features import LazyFeatures, planes_of
from vitcache.adapters.lazy_rows import LazyRows
from vitcache.adapters.output_form import OutputForm
from vitcache.adapters.placed_call import PlacedCall
from vitcache.adapters.running_call import ThreadState
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pages.lease import Lease

HIDDEN = 4
LENGTHS = 3, 2, 5, 2
"""Rows of each item. All but the second item are cached."""


class Owner(nn.Module):
    """A base model, as far as a merge looks at it."""

    def __init__(self, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = embedding or nn.Embedding(8, HIDDEN)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding


class LazyScene(NamedTuple):
    """Rows of four items. `plain` and `lazy` have a tensor for the features, and one for each level."""

    cache: EmbeddingCache
    plain: list[Tensor]
    lazy: list[LazyFeatures]
    thread: ThreadState

    @classmethod
    def of(
        cls, levels: int = 0, dtype: torch.dtype = torch.float32, stored: torch.dtype | None = None
    ) -> LazyScene:
        """Return a scene with features of `dtype`, in a cache whose dtype is `stored`."""
        generator = torch.Generator().manual_seed(levels)
        width, stored = HIDDEN * (1 + levels), stored or dtype
        cache = make_cache(width=width, dtype=stored)
        items: list[Tensor | Lease] = []
        plain = []
        for number, length in enumerate(LENGTHS):
            rows = torch.randn(length, width, generator=generator).to(dtype)
            plain.append(rows)
            cache.put(bytes([number]) * 32, rows.to(stored))
            lease = None if number == 1 else cache.get(bytes([number]) * 32)
            items.append(lease or rows.clone())
        form = OutputForm(
            cls=object,
            device=torch.device("cpu"),
            rows_in=("pooler_output",),
            pooler=2,
            levels=(2,) * levels,
            levels_in=list,
            layers=(),
            width=width,
            dtype=dtype,
        )
        thread = ThreadState()
        lazy = planes_of(LazyRows(items, LENGTHS, form), thread)
        planes = torch.cat(plain).unflatten(1, (1 + levels, HIDDEN)).unbind(1)
        return cls(cache, [plane.contiguous() for plane in planes], lazy, thread)

    def begin_call(self, owner: nn.Module | None = None, reason: str | None = None) -> PlacedCall:
        """Let the thread run a forward of `owner`."""
        self.thread.call = call = PlacedCall(owner or Owner(), reason, frame_id=0)
        call.has_items = True
        return call


@pytest.fixture
def stock_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let merges by a test pass for those of a stock forward."""
    monkeypatch.setattr(placed_call, "is_called_by_stock_code", lambda owner, frame: True)


def outcome(function: Any, *args: Any) -> Any:
    """Return the result of the function, or the class of its error."""
    try:
        return function(*args)
    except Exception as error:
        return type(error)


def same(first: Any, second: Any) -> bool:
    """Whether two outcomes are equal; tensors also in shape, dtype, strides and grad mode."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if (
            first.dtype != second.dtype
            or first.shape != second.shape
            or (first.numel() and first.stride() != second.stride())
        ):
            return False
        return first.requires_grad == second.requires_grad and torch.equal(first, second)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and bool(np.array_equal(first, second))
