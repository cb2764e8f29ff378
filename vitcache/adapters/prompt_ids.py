"""The token ids of one prompt: read to the host, compared with those of the last prompt, and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_prompt(input_ids: Any) -> None:
    """Raise TypeError if `input_ids` is not a tensor, and ValueError if it is more than one prompt."""
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor, got {type(input_ids).__name__}")
    if input_ids.dim() not in (1, 2) or (input_ids.dim() == 2 and len(input_ids) != 1):
        raise ValueError(f"input_ids must have shape (tokens,) or (1, tokens), got {tuple(input_ids.shape)}")


def one_prompt(input_ids: Any) -> np.ndarray:
    """Return the token ids of one prompt in host memory, int64 ``(T,)``. Waits for a CUDA tensor.

    Raises
    ------
    TypeError
        If `input_ids` is not a tensor of int32 or int64.
    ValueError
        If it has no tokens, or more than one prompt.
    """
    check_prompt(input_ids)
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"input_ids are {input_ids.dtype}, they must be int64 or int32")
    ids: np.ndarray = input_ids.detach().reshape(-1).to("cpu", torch.int64).numpy()
    if not len(ids):
        raise ValueError("the prompt has no tokens")
    return ids


def common_length(ids: np.ndarray, others: np.ndarray, limit: int) -> int:
    """Return the number of leading token ids, at most `limit`, that are equal."""
    differs = ids[:limit] != others[:limit]
    first = int(differs.argmax()) if limit else 0
    return first if limit and differs[first] else limit


def check_text_ids(ids: np.ndarray, types: np.ndarray, start: int, config: Any, num_ids: int) -> None:
    """Refuse text tokens without an embedding, and placeholders outside of all items.

    Parameters
    ----------
    ids, types
        Ids and types of the tokens of a prompt from token `start` on; type 0 is text.
    config
        The config of the base model, with the ids of placeholders.
    num_ids
        Number of rows of the embedding table.

    Raises
    ------
    IndexError
        If a text token has no row in the embedding table.
    ValueError
        If a text token has the id of a placeholder.
    """
    wrong = np.flatnonzero(((ids < 0) | (ids >= num_ids)) & (types == 0))
    if len(wrong):
        first = int(wrong[0])
        raise IndexError(
            f"token {start + first} has id {int(ids[first])}, the embedding table has {num_ids} rows"
        )
    is_placeholder = (ids == config.image_token_id) | (ids == config.video_token_id)
    stray = np.flatnonzero(is_placeholder & (types == 0))
    if len(stray):
        first = int(stray[0])
        raise ValueError(
            f"token {start + first} is a placeholder (id {int(ids[first])}), but no item covers it; "
            f"placeholders without an item: {len(stray)}"
        )
