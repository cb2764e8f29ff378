"""`join_kv`: a KV cache for one forward of several conversations, each of which keeps its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


def can_join(kv: Any) -> bool:
    """Whether all layers of a `DynamicCache` keep the keys and values of every token.

    Layers of linear attention keep a state, and layers of a sliding window drop old tokens. Padding would
    change their contents.
    """
    return all(type(layer) is DynamicLayer for layer in kv.layers)


def join_kv(caches: Sequence[Any], lengths: Sequence[int]) -> tuple[Any, Tensor]:
    """Return a cache for a batch with one row per conversation, and the batch's attention mask.

    New tokens and cached tokens are padded on the left, so that the last tokens of all rows have one index.
    The forward appends the new tokens of each row, without the padding, to the conversation's own cache. Each
    layer copies the keys and values of all rows once, and frees the copy after the layer.

    Parameters
    ----------
    caches
        One `DynamicCache` per conversation, for which `can_join` is true.
    lengths
        Number of new tokens of each conversation. The batch has ``max(lengths)`` columns.

    Returns
    -------
    tuple
        The cache, and a mask ``(conversations, tokens)`` in host memory, int64: 1 at tokens, 0 at padding.
    """
    totals = [kv.get_seq_length() + length for kv, length in zip(caches, lengths, strict=True)]
    mask = torch.zeros(len(totals), max(totals), dtype=torch.int64, device="cpu")
    for row, total in zip(mask, totals, strict=True):
        row[-total:] = 1
    num_before = max(totals) - max(lengths)
    layers = zip(*(kv.layers for kv in caches), strict=True)
    return Cache(layers=[_JoinedLayer(rows, lengths, num_before) for rows in layers]), mask


class _JoinedLayer(DynamicLayer):
    """One layer of a joined cache. It stores no keys or values itself.

    Parameters
    ----------
    rows
        This layer in the cache of each conversation.
    lengths
        As in `join_kv`.
    num_before
        Number of columns before the first new column.
    """

    def __init__(self, rows: Sequence[Any], lengths: Sequence[int], num_before: int) -> None:
        super().__init__()
        self._rows, self._lengths, self._num_before = rows, lengths, num_before

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens of each row to its own layer; return the keys and values of all rows."""
        columns = key_states.shape[-2]
        keys, values = [], []
        for number, (layer, length) in enumerate(zip(self._rows, self._lengths, strict=True)):
            new = slice(number, number + 1), slice(None), slice(columns - length, None)
            row_keys, row_values = layer.update(key_states[new], value_states[new])
            keys.append(row_keys)
            values.append(row_values)
        return self._stack(keys, columns), self._stack(values, columns)

    def get_seq_length(self) -> int:
        """Return the number of columns before the first new column."""
        return self._num_before

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns with the new ones, and the index of the first column."""
        return self._num_before + query_length, 0

    def _stack(self, rows: Sequence[Tensor], columns: int) -> Tensor:
        first, longest = rows[0], self._num_before + columns
        stacked = first.new_zeros(len(rows), first.shape[1], longest, first.shape[3])
        for number, row in enumerate(rows):
            stacked[number, :, longest - row.shape[2] :] = row[0]
        return stacked
