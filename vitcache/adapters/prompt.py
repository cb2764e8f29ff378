"""A prompt with images: what stands at its tokens, and what the language model is told of them."""

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
    """One prompt of a model whose images have grids, checked.

    Parameters
    ----------
    base
        The base model: its config, and `get_rope_index`.
    input_ids, items
        See `ChunkedPrefill.chunks`.
    find_key
        The pipeline's `key`: what an item without one comes to.

    Attributes
    ----------
    host_ids
        Token ids, int64 ``(T,)``.
    input_ids, positions, is_image
        On the device: token ids ``(T,)``, M-RoPE positions ``(3, 1, T)``, whether a token is of an image.
    image_tokens
        The positions of all tokens of images, ascending, on the host.
    device_image_tokens
        The same on the device.
    items
        All items, sorted once.

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
        placed = [each for each in enumerate(self.items) if any(span.length for span in each[1].spans)]
        placed.sort(key=lambda each: _first_token(each[1]))
        is_image = torch.zeros(len(ids), dtype=torch.bool, device="cpu")
        for position, item in placed:
            _check_item(position, item, len(ids), base.config)
            for span in item.spans:
                is_image[span.start : span.stop] = True
        _check_neighbours(placed)
        _check_placeholders(ids, is_image, base.config)
        grids = [item.encoder_kwargs["grid_thw"] for _, item in placed]
        # Everything about positions is known on the host: worked out there, the device is never waited for.
        positions, _ = base.get_rope_index(
            ids[None],
            is_image[None].int(),
            image_grid_thw=torch.tensor(grids, device="cpu") if grids else None,
        )
        image_tokens = is_image.nonzero().squeeze(1)
        # All at once, before there is work on the device: a copy from pageable memory waits for its stream.
        device = base.get_input_embeddings().weight.device
        self.input_ids, self.positions = ids.to(device), positions.to(device)
        self.is_image, self.device_image_tokens = is_image.to(device), image_tokens.to(device)
        self.image_tokens = image_tokens.numpy()
        self._placed, self._find_key = [item for _, item in placed], find_key

    def __len__(self) -> int:
        return len(self.host_ids)

    def common_prefix(self, other: Prompt, most: int) -> int:
        """Return up to which token, at `most`, two prompts are the same, images included.

        Images that begin behind it need no keys: an image that is new is hashed with the chunk it is in.
        """
        shorter = min(len(self), len(other), most)
        differ = np.flatnonzero(self.host_ids[:shorter] != other.host_ids[:shorter])
        end = int(differ[0]) if len(differ) else shorter
        different_items = self._contents(end) ^ other._contents(end)
        return min((first for first, _ in different_items), default=end)

    def _contents(self, end: int) -> set[tuple[int, object]]:
        """First tokens and contents of the items that begin before a token."""
        firsts = [(_first_token(item), item) for item in self._placed]
        return {(first, _content(item, self._find_key)) for first, item in firsts if first < end}


def _one_prompt(input_ids: Any) -> Tensor:
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor, it is {type(input_ids).__name__}")
    if input_ids.dim() not in (1, 2) or (input_ids.dim() == 2 and len(input_ids) != 1):
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}, one prompt has (tokens,) or (1, tokens)"
        )
    return input_ids.reshape(-1)


def _check_item(position: int, item: Item, num_tokens: int, config: Any) -> None:
    grid = item.encoder_kwargs.get("grid_thw")
    if grid is None:
        raise ValueError(f"item {position} has no grid_thw")
    if not isinstance(grid, list | tuple) or len(grid) != 3:
        raise ValueError(f"item {position} has grid_thw {grid!r}, it must be a list of three ints")
    merged = config.vision_config.spatial_merge_size
    covered = sum(span.length for span in item.spans)
    expected = grid[0] * (grid[1] // merged) * (grid[2] // merged)
    if covered != expected:
        raise ValueError(
            f"the spans of item {position} have {covered} tokens, its grid {grid} asks for {expected}"
        )
    stop = max(span.stop for span in item.spans)
    if stop > num_tokens:
        raise ValueError(f"a span of item {position} ends at token {stop}, the prompt has {num_tokens}")
    # Positions count the rows of a grid from an image's first token on.
    first = _first_token(item)
    for span in item.spans:
        if span.length and span.start - first != span.source_start:
            raise ValueError(
                f"item {position} is no run of tokens: it begins at token {first}, and its row "
                f"{span.source_start} is at token {span.start}"
            )


def _check_neighbours(placed: Sequence[tuple[int, Item]]) -> None:
    """Refuse images without a token between them, which the model takes for one."""
    for (position, item), (other, its) in pairwise(placed):
        stop, first = max(span.stop for span in item.spans if span.length), _first_token(its)
        if first <= stop:
            raise ValueError(
                f"item {position} ends at token {stop} and item {other} begins at {first}: there must be a "
                "token between two images"
            )


def _check_placeholders(ids: Tensor, is_image: Tensor, config: Any) -> None:
    """Refuse placeholders that would be looked up as text."""
    placeholders = torch.tensor([config.image_token_id, config.video_token_id], device="cpu")
    stray = (torch.isin(ids, placeholders) & ~is_image).nonzero()
    if len(stray):
        token = int(stray[0])
        raise ValueError(
            f"token {token} is a placeholder (id {int(ids[token])}) that no item covers, one of {len(stray)}"
        )


def _first_token(item: Item) -> int:
    return int(min(span.start for span in item.spans if span.length))


def _content(item: Item, find_key: FindKey) -> tuple[object, ...]:
    """What two items have in common that give the same rows and positions to the same tokens."""
    content: object
    if item.rows is not None:
        content = id(item.rows)
    else:
        try:
            content = find_key(item)
        except Exception:  # the pipeline will say so; until then it is like no other
            content = id(item)
    return content, item.num_rows, item.spans, tuple(item.encoder_kwargs["grid_thw"])
