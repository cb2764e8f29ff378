"""`Transcript`: the tokens of a conversation and their positions. A longer prompt adds its new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitcache.adapters.item_runs import FindKey, ItemRuns
from vitcache.adapters.prompt_ids import check_text_ids, common_length, one_prompt
from vitcache.adapters.token_types import IMAGE, VIDEO
from vitcache.pipeline.items import Item


class NextPrompt(NamedTuple):
    """A prompt that was checked and compared with a transcript, and not yet written to it.

    Attributes
    ----------
    runs
        The runs of its items.
    common
        Number of leading tokens that the KV cache has already, images and videos included. At least one token
        of the prompt is not among them.
    start
        The token at which `ids` and `positions` begin. It is at most `common`.
    ids
        Token ids from `start` to the end, int64.
    positions
        M-RoPE positions ``(3, len(ids) + 1)`` from `start` on. The last column is the position of a text
        token that follows the prompt.
    state
        The state of the transcript that the prompt was compared with.
    """

    runs: ItemRuns
    common: int
    start: int
    ids: np.ndarray
    positions: np.ndarray
    state: object


class Transcript:
    """The tokens of the last prompt of one conversation, on the host.

    A prompt that begins with the tokens of the last prompt costs the host the comparison of the token ids,
    and work for each new token and item.

    Parameters
    ----------
    base
        The base model, with its config and `get_rope_index`.

    Attributes
    ----------
    length
        Number of tokens of the last prompt.
    state
        An object that each `write` replaces.
    """

    def __init__(self, base: Any) -> None:
        self._base = base
        self.length = 0
        self.state = object()
        self._ids = np.empty(0, np.int64)
        # Column n is the position of token n. At the first token of a run all three numbers are equal to the
        # position that a text token would have there.
        self._positions = np.zeros((3, 1), np.int64)
        self._runs: ItemRuns | None = None

    @property
    def runs(self) -> ItemRuns:
        """The runs of the last prompt. Only after `write`."""
        if self._runs is None:
            raise RuntimeError("the transcript has no prompt")
        return self._runs

    def compare(
        self, input_ids: Tensor, items: Sequence[Item], num_cached: int, find_key: FindKey
    ) -> NextPrompt:
        """Check a prompt, compare it with the last one, and compute its new positions.

        Parameters
        ----------
        input_ids, items
            See `ChunkedPrefill.chunks`.
        num_cached
            Number of tokens of the last prompt that are in the KV cache.
        find_key
            The pipeline's `key`: returns the key of an item, and hashes its feature if it has none.

        Raises
        ------
        TypeError, ValueError, IndexError
            See `ChunkedPrefill.chunks`. The transcript has not changed.
        """
        state = self.state  # first: a signal handler may write another prompt
        ids = one_prompt(input_ids)
        config = self._base.config
        runs = ItemRuns.following(self._runs, items, config)
        _check_stop(runs, len(ids))
        common = common_length(ids, self._ids, min(num_cached, self.length, len(ids) - 1))
        if self._runs is not None:
            common = self._runs.common_prefix(runs, common, find_key)
        start = runs.boundary(common)
        types = runs.token_types(start, len(ids))
        check_text_ids(ids[start:], types, start, config, len(self._base.get_input_embeddings().weight))
        # The stock method counts from 0. Positions of a suffix that begins outside of all runs differ from
        # that by a constant.
        positions = self._positions[:, start : start + 1] + self._relative_positions(ids, start, types, runs)
        return NextPrompt(runs, common, start, ids[start:], positions, state)

    def write(self, prompt: NextPrompt) -> bool:
        """Replace the last prompt by `prompt`, which `compare` returned since the last `write`.

        Returns False, and changes nothing, if another prompt was written since `compare`.
        """
        start, length, state = prompt.start, prompt.start + len(prompt.ids), object()
        ids, positions = _grown(self._ids, length), _grown(self._positions, length + 1)
        if self.state is not prompt.state:
            return False
        # No function is called below: so no signal handler can run between these lines.
        ids[start:length] = prompt.ids
        positions[:, start : length + 1] = prompt.positions
        self._ids, self._positions, self._runs = ids, positions, prompt.runs
        self.length, self.state = length, state
        return True

    def ids(self, start: int, stop: int) -> np.ndarray:
        """Return the token ids of ``[start, stop)``, int64: a view, valid until the next `write`."""
        return self._ids[start:stop]

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Return the positions of tokens ``[start, stop)``, ``(3, n)``: a view, as `ids`."""
        return self._positions[:, start:stop]

    def _relative_positions(
        self, ids: np.ndarray, start: int, types: np.ndarray, runs: ItemRuns
    ) -> np.ndarray:
        """Return the positions of a prompt from token `start` on, and of one more text token, from 0 on."""
        num_tokens = len(ids) - start + 1
        new_runs = runs.within(start, len(ids))
        if not new_runs:
            return np.arange(num_tokens)[None].repeat(3, axis=0)
        grids = {
            modality: torch.tensor([run.grid for run in new_runs if run.modality == modality], device="cpu")
            for modality in (IMAGE, VIDEO)
        }
        seconds = [run.seconds for run in new_runs if run.modality == VIDEO]
        options = {}
        if any(value is not None for value in seconds):
            # The stock method takes 1 second if it is given no times. Processors return float32, and products
            # of float64 may be one position less.
            times = [1.0 if value is None else value for value in seconds]
            options["second_per_grid_ts"] = torch.tensor(times, dtype=torch.float32, device="cpu")
        positions, _ = self._base.get_rope_index(
            torch.from_numpy(np.append(ids[start:], 0))[None],
            torch.from_numpy(np.append(types, 0))[None],
            image_grid_thw=grids[IMAGE] if len(grids[IMAGE]) else None,
            video_grid_thw=grids[VIDEO] if len(grids[VIDEO]) else None,
            **options,
        )
        relative: np.ndarray = positions[:, 0].numpy()
        return relative


def _check_stop(runs: ItemRuns, num_tokens: int) -> None:
    if runs.stop > num_tokens:
        item = runs.runs[-1].item
        raise ValueError(f"a span of item {item} ends at token {runs.stop}, the prompt has {num_tokens}")


def _grown(array: np.ndarray, length: int) -> np.ndarray:
    """Return the array, or a copy of at least twice its length if `length` elements do not fit."""
    found = array.shape[-1]
    if length <= found:
        return array
    larger = np.zeros((*array.shape[:-1], max(length, 2 * found)), array.dtype)
    larger[..., :found] = array
    return larger
