"""Rows, destinations, and the expected result of a placement, computed in loops over rows."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from vitcache import Span

FLOAT_DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_rows(num_rows: int, width: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    return torch.randn(num_rows, width, dtype=torch.float32).to(dtype).to(device)


def poisoned(*shape: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """A destination filled with NaN, so that a row that was not written is found."""
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def untouched(num_elements: int, dtype: torch.dtype) -> Tensor:
    """CPU memory of any size. The operating system allocates each page when it is first written."""
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # mmap defines it since Python 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return torch.frombuffer(mmap.mmap(-1, num_elements * dtype.itemsize, flags=flags), dtype=dtype)


def as_spans(where: object, num_rows: int) -> list[Span]:
    if isinstance(where, Span):
        return [where]
    return [Span(where, num_rows)] if isinstance(where, int) else list(where)


def expected_scatter(
    out: Tensor,
    items: list[Tensor],
    spans: list[object],
    deepstack: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The destinations after a scatter, computed row by row from the contract of `scatter_embeddings`."""
    hidden = out.shape[-1]
    out, deepstack = out.clone(), None if deepstack is None else deepstack.clone()
    tokens = out.view(-1, hidden)
    for item, where in zip(items, spans, strict=True):
        for span in as_spans(where, len(item)):
            for step in range(span.length):
                row = item[span.source_start + step]
                row = row if scale is None else row.float() * scale
                tokens[span.start + step] = row[:hidden].to(out.dtype)
                for level in range(0 if deepstack is None else len(deepstack)):
                    columns = row[hidden * (level + 1) : hidden * (level + 2)]
                    deepstack.view(len(deepstack), -1, hidden)[level, span.start + step] = columns.to(
                        out.dtype
                    )
    return out, deepstack


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shape, dtype and bits, so that a NaN equals itself and 0.0 differs from -0.0."""
    as_ints = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(as_ints), b.view(as_ints))
