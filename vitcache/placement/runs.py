"""Runs: convert the spans of a call to checked numbers."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
from torch import Tensor

from vitcache.placement.reference import Run
from vitcache.placement.spans import Span
from vitcache.rows import check_extent, check_layout


def check_lists(embeddings: Any, spans: Any) -> None:
    """Raise TypeError or ValueError unless both are lists or tuples of equal length."""
    for name, value in (("embeddings", embeddings), ("spans", spans)):
        # Dynamo of torch 2.9 cannot trace `list | tuple`.
        if not isinstance(value, (list, tuple)) or isinstance(value, Span):
            raise TypeError(
                f"{name} must be a list with one entry per item, got {type(value).__name__}; "
                "a packed tensor needs spans as an int64 array (n, 3)"
            )
    if len(embeddings) != len(spans):
        raise ValueError(f"got {len(embeddings)} embeddings and {len(spans)} entries of spans")


def list_runs(spans: Sequence[Any], rows: Sequence[int]) -> list[Run]:
    """The runs of a list of spans. A compiled call traces this in place of the native `add_spans`."""
    runs: list[Run] = []
    for item, entry in enumerate(spans):
        if isinstance(entry, Span):
            runs.append((item, *entry))
        elif isinstance(entry, (list, tuple)):
            for span in entry:
                if not isinstance(span, Span):
                    raise TypeError(f"item {item}: every span must be a Span, got {type(span).__name__}")
                runs.append((item, *span))
        else:
            try:
                start = None if isinstance(entry, bool) else index(entry)
            except TypeError:
                start = None
            if start is None:
                kind = type(entry).__name__
                raise TypeError(f"item {item}: spans must be an int, a Span or a list of Span, not {kind}")
            runs.append((item, start, rows[item], 0))
    return runs


def span_array(spans: Any, columns: int) -> np.ndarray:
    """Return `spans` as a C-contiguous int64 array ``(n, columns)`` in host memory, or raise."""
    if isinstance(spans, Tensor):
        if spans.device.type != "cpu":
            raise ValueError(f"spans are on {spans.device}, they must be in host memory")
        check_layout("spans", spans)
        check_extent("spans", spans)
        spans = spans.numpy(force=True)
    if not isinstance(spans, np.ndarray):
        raise TypeError(
            f"spans of one packed tensor must be an int64 array (n, {columns}), not {type(spans).__name__}"
        )
    spans = np.asarray(spans)  # a subclass may have a `dtype` of its own
    if spans.dtype != np.int64:
        raise TypeError(f"spans must be int64, they are {spans.dtype}")
    if spans.ndim != 2 or spans.shape[1] != columns:
        raise ValueError(f"spans have shape {spans.shape}, it must be (n, {columns})")
    return np.ascontiguousarray(spans)
