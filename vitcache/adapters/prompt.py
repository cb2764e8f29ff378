"""`Prompt`: the tokens and images of a prompt, checked, with the inputs that the language model needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcache.pipeline.items import Item, Items

FindKey = Callable[[Item], bytes]


class Prompt:
    """One prompt of a model whose images have grids. The constructor checks it.

    Parameters
    ----------
    base
        The base model, with its config and `get_rope_index`.
    input_ids, items
        See `ChunkedPrefill.chunks`.
    find_key
        The pipeline's `key`: returns the key of an item, and hashes its feature if it has none.

    Attributes
    ----------
    host_ids
        Token ids, int64 ``(T,)``.
    input_ids, positions, is_image
        On the device: token ids ``(T,)``, M-RoPE positions ``(3, 1, T)``, and a bool per token, true at the
        tokens of images ``(T,)``.
    image_tokens
        Indices of the tokens of images, ascending, on the host.
    device_image_tokens
        The same indices on the device.
    items
        All items, as `Items`, so that they are sorted once.

    Raises
    ------
    TypeError, ValueError
        See `ChunkedPrefill.chunks`.
    """

    def __init__(self, base: Any, input_ids: Tensor, items: Sequence[Item], find_key: FindKey) -> None:
        ids = _one_prompt(input_ids).to("cpu", copy=True)
        if not len(ids):
            raise ValueError("the prompt has no tokens")
        self.host_ids = ids.numpy()
        self.items = items if isinstance(items, Items) else Items(items)
        placed = [
            (position, item)
            for position, item in enumerate(self.items)
            if any(span.length for span in item.spans)
        ]
        placed.sort(key=lambda numbered: _first_token(numbered[1]))
        is_image = torch.zeros(len(ids), dtype=torch.bool, device="cpu")
        for position, item in placed:
            _check_item(position, item, len(ids), base.config)
            for span in item.spans:
                is_image[span.start : span.stop] = True
        _check_neighbours(placed)
        _check_placeholders(ids, is_image, base.config)
        grids = [item.encoder_kwargs["grid_thw"] for _, item in placed]
        # Computed on the host, where all inputs are, so that the host does not wait for the device.
        positions, _ = base.get_rope_index(
            ids[None],
            is_image[None].int(),
            image_grid_thw=torch.tensor(grids, device="cpu") if grids else None,
        )
        image_tokens = is_image.nonzero().squeeze(1)
        # Copied here, before work is queued on the device: a copy from pageable memory waits for its stream.
        device = base.get_input_embeddings().weight.device
        self.input_ids, self.positions = ids.to(device), positions.to(device)
        self.is_image, self.device_image_tokens = is_image.to(device), image_tokens.to(device)
        self.image_tokens = image_tokens.numpy()
        self._placed, self._find_key = [item for _, item in placed], find_key

    def __len__(self) -> int:
        return len(self.host_ids)

    def common_prefix(self, other: Prompt, limit: int) -> int:
        """Return the number of leading tokens, at most `limit`, that two prompts share, images included.

        Only images that begin within the common token ids are hashed. A later image is hashed with its chunk.
        """
        length = min(len(self), len(other), limit)
        differences = np.flatnonzero(self.host_ids[:length] != other.host_ids[:length])
        end = int(differences[0]) if len(differences) else length
        different_items = self._contents(end) ^ other._contents(end)
        return min((first for first, _ in different_items), default=end)

    def _contents(self, end: int) -> set[tuple[int, object]]:
        """Return first token and content of each item that begins before token `end`."""
        firsts = [(_first_token(item), item) for item in self._placed]
        return {(first, _content(item, self._find_key)) for first, item in firsts if first < end}


def _one_prompt(input_ids: Any) -> Tensor:
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor, got {type(input_ids).__name__}")
    if input_ids.dim() not in (1, 2) or (input_ids.dim() == 2 and len(input_ids) != 1):
        raise ValueError(f"input_ids must have shape (tokens,) or (1, tokens), got {tuple(input_ids.shape)}")
    return input_ids.reshape(-1)


def _check_item(position: int, item: Item, num_tokens: int, config: Any) -> None:
    grid = item.encoder_kwargs.get("grid_thw")
    if grid is None:
        raise ValueError(f"item {position} has no grid_thw")
    if not isinstance(grid, list | tuple) or len(grid) != 3:
        raise ValueError(f"grid_thw of item {position} must be a list of three ints, got {grid!r}")
    merged = config.vision_config.spatial_merge_size
    covered = sum(span.length for span in item.spans)
    expected = grid[0] * (grid[1] // merged) * (grid[2] // merged)
    if covered != expected:
        raise ValueError(
            f"the spans of item {position} must cover {expected} tokens, as its grid is {grid}, got {covered}"
        )
    stop = max(span.stop for span in item.spans)
    if stop > num_tokens:
        raise ValueError(f"a span of item {position} ends at token {stop}, the prompt has {num_tokens}")
    # A token's position follows from its distance to the image's first token, so row n must be at token
    # first + n.
    first = _first_token(item)
    for span in item.spans:
        if span.length and span.start - first != span.source_start:
            raise ValueError(
                f"the tokens of item {position} must be one run that begins at token {first}: expected row "
                f"{span.source_start} at token {first + span.source_start}, got token {span.start}"
            )


def _check_neighbours(placed: Sequence[tuple[int, Item]]) -> None:
    """Refuse two images without a token between them: the model would see one image."""
    for (position, item), (next_position, next_item) in pairwise(placed):
        stop, first = max(span.stop for span in item.spans if span.length), _first_token(next_item)
        if first <= stop:
            raise ValueError(
                f"item {position} ends at token {stop} and item {next_position} begins at token {first}: "
                "expected a token between two images"
            )


def _check_placeholders(ids: Tensor, is_image: Tensor, config: Any) -> None:
    """Refuse placeholders outside of all items: they would be embedded as text."""
    placeholders = torch.tensor([config.image_token_id, config.video_token_id], device="cpu")
    stray = (torch.isin(ids, placeholders) & ~is_image).nonzero()
    if len(stray):
        token = int(stray[0])
        raise ValueError(
            f"token {token} is a placeholder (id {int(ids[token])}), but no item covers it; "
            f"placeholders without an item: {len(stray)}"
        )


def _first_token(item: Item) -> int:
    return int(min(span.start for span in item.spans if span.length))


def _content(item: Item, find_key: FindKey) -> tuple[object, ...]:
    """Return a value that is equal for two items only if their rows, tokens and positions are equal."""
    content: object
    if item.rows is not None and item.key is None:
        content = object()  # equals nothing: the caller may have overwritten the tensor
    else:
        try:
            content = find_key(item)
        except Exception:  # the pipeline will report it; here the item equals only itself
            content = id(item)
    return content, item.num_rows, item.spans, tuple(item.encoder_kwargs["grid_thw"])
