"""`ItemFactory`: makes the `Item` of an item of SGLang."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcache.adapters.sglang.counts import Counts
from vitcache.adapters.sglang.feature_places import (
    can_be_borrowed,
    can_be_opened,
    encoder_moves,
    open_feature,
    wait_until_offloaded,
)
from vitcache.adapters.sglang.item_keys import ItemKey, item_key
from vitcache.adapters.sglang.tenant import label_of
from vitcache.keys.content import KEY_BYTES
from vitcache.pipeline.items import Item
from vitcache.placement.spans import Span
from vitcache.rows import DTYPES


class Feature:
    """A callable that returns the feature that an item of SGLang has now.

    SGLang replaces features: it moves them, copies them back, and releases them at the end of a request.

    Parameters
    ----------
    source
        The `MultimodalDataItem` of SGLang.
    opened_on
        The device on which a feature in the memory of another process is opened, so that it can be hashed;
        None: it is returned as it is.
    """

    __slots__ = ("_opened_on", "_source")

    def __init__(self, source: Any, opened_on: torch.device | None) -> None:
        self._source = source
        self._opened_on = opened_on

    def __call__(self) -> Any:
        if self._opened_on is not None:
            open_feature(self._source, self._opened_on)
        feature = self._source.feature
        wait_until_offloaded(self._source, feature)
        return feature


class Failure:
    """A callable in place of a feature, for an item whose rows cannot exist: raises the reason."""

    __slots__ = ("_error",)

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self) -> Any:
        raise self._error


@dataclass(frozen=True)
class ItemFactory:
    """Makes items for the steps of one model.

    Attributes
    ----------
    row_width
        Returns the elements of a row for a modality of SGLang.
    embedder
        Returns the encoder for a modality, or None.
    device, dtype
        The device and the dtype of the text rows.
    trust_engine_hash
        As in `Options`.
    counts
        Counts the items without a key of their content.
    """

    row_width: Callable[[Any], int]
    embedder: Callable[[Any], Any]
    device: torch.device
    dtype: torch.dtype
    trust_engine_hash: bool
    counts: Counts

    def make(
        self, source: Any, spans: Sequence[Span], tenant: tuple[str, str], known: ItemKey | None
    ) -> tuple[Item, ItemKey | None]:
        """Return the item of `source`, a `MultimodalDataItem` of SGLang, which becomes its context.

        An item whose rows cannot exist gets a feature that raises the reason, so the step reports it.

        Parameters
        ----------
        known
            The key of the item, if an earlier request has computed it.

        Returns
        -------
        Item, ItemKey or None
            The item, and how the pipeline finds its key; None for precomputed rows.
        """
        try:
            if source.precomputed_embeddings is not None:
                return self._precomputed(source, spans), None
            return self._encoded(source, spans, tenant, known)
        except Exception as error:  # of data of a request, which must not end the engine
            feature = Failure(error.with_traceback(None))
            return Item(
                feature, spans, key=os.urandom(KEY_BYTES), complete_key=True, move_feature=False
            ), None

    def make_unread(
        self, source: Any, spans: Sequence[Span], tenant: tuple[str, str], known: ItemKey | None
    ) -> tuple[Item, ItemKey] | None:
        """Return an item of `source` whose rows can be fetched before a step needs them, and its key.

        No encoder reads it. None: the item has no key of its content, or its feature is in the memory of
        another process.
        """
        num_rows = sum(span.length for span in spans)
        key = known or item_key(source, num_rows, tenant, self.trust_engine_hash)
        if not key.is_shared or (key.key is None and key.digest is None and can_be_borrowed(source)):
            return None
        item = Item(
            # SGLang may replace the feature before it is hashed.
            partial(_when_offloaded, source, source.feature),
            spans,
            key=key.key,
            row_width=self.row_width(source.modality),
            tenant=label_of(tenant),
            context=source,
            move_feature=False,
            sglang=key.arguments,
        )
        item.digest = key.digest
        return item, key

    def _precomputed(self, source: Any, spans: Sequence[Span]) -> Item:
        rows = source.precomputed_embeddings
        if isinstance(rows, list | tuple) and len(rows) == 1:
            [rows] = rows
        if isinstance(rows, np.ndarray):
            rows = torch.from_numpy(np.ascontiguousarray(rows))
        if not isinstance(rows, Tensor) or rows.dim() < 2:
            raise TypeError(
                "precomputed_embeddings must be a tensor of rows, got "
                f"{tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__}"
            )
        wait_until_offloaded(source, rows)
        if rows.dtype not in DTYPES:  # such as the float64 of NumPy: SGLang converts each dtype
            rows = rows.to(self.dtype)
        rows = rows.reshape(-1, rows.shape[-1]).to(self.device, non_blocking=True)
        return Item(None, spans, rows=rows, row_width=self.row_width(source.modality), context=source)

    def _encoded(
        self, source: Any, spans: Sequence[Span], tenant: tuple[str, str], known: ItemKey | None
    ) -> tuple[Item, ItemKey]:
        key = known
        if key is None:
            num_rows = sum(span.length for span in spans)
            key = item_key(source, num_rows, tenant, self.trust_engine_hash, can_be_opened(source))
            if not key.is_shared:
                self.counts.add_unshared(source)
        embedder = self.embedder(source.modality)
        # SGLang moves tensors, and leaves other objects and the features of some encoders to the encoder.
        is_moved = isinstance(source.feature, Tensor) and not encoder_moves(embedder)
        item = Item(
            Feature(source, self.device if key.key is None else None),
            spans,
            key=key.key,
            complete_key=not key.is_shared,
            row_width=self.row_width(source.modality),
            tenant=label_of(tenant),
            context=source,
            move_feature=is_moved,
            sglang=key.arguments,  # hashed with the feature
        )
        item.digest = key.digest
        return item, key


def _when_offloaded(source: Any, feature: Any) -> Any:
    """Return a feature of a source after the copies of it to host memory."""
    wait_until_offloaded(source, feature)
    return feature
