"""`runs_of`: the runs of tokens of one image or video, checked against its grid."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Any, NamedTuple

from vitcache.adapters.families import GRID_FAMILIES
from vitcache.adapters.grid_encoder import grid_names
from vitcache.adapters.token_types import IMAGE, VIDEO
from vitcache.pipeline.items import Item

Grid = tuple[int, int, int]


class Run(NamedTuple):
    """Consecutive tokens of one item that the model sees as one grid: an image, a video or a frame of one.

    Attributes
    ----------
    first, stop
        The run's first token, and the token after its last.
    item
        Position of the item in the prompt's items.
    modality
        `IMAGE` or `VIDEO`.
    grid
        t, h and w of the run, in patches.
    seconds
        Seconds between two frames of a video, of which positions depend on in Qwen2.5-VL. None: not given.
    """

    first: int
    stop: int
    item: int
    modality: int
    grid: Grid
    seconds: float | None


def runs_of(position: int, item: Item, config: Any) -> list[Run]:
    """Return the runs of one item, ascending; none if it has no tokens.

    Parameters
    ----------
    position
        Position of the item in the prompt's items, for the runs and for error messages.
    config
        The config of the base model.

    Raises
    ------
    TypeError, ValueError
        As `ChunkedPrefill.chunks`, if the item's grid is missing or wrong, or its tokens do not fit the grid.
    """
    spans = sorted((span for span in item.spans if span.length), key=attrgetter("start"))
    if not spans:
        return []
    modality, grid, seconds = grid_of(position, item)
    merged = config.vision_config.spatial_merge_size
    per_frame = (grid[1] // merged) * (grid[2] // merged)
    expected = grid[0] * per_frame
    covered = sum(span.length for span in spans)
    if covered != expected:
        raise ValueError(
            f"the spans of item {position} must cover {expected} tokens, as its grid is {list(grid)}, "
            f"got {covered}"
        )
    family = GRID_FAMILIES[config.model_type]
    if seconds is not None and not (modality == VIDEO and family.videos_have_seconds):
        raise ValueError(
            f"item {position} has second_per_grid_t, but the positions of {config.model_type} "
            f"{'videos' if modality == VIDEO else 'images'} do not depend on it"
        )
    if item.num_rows != expected:
        raise ValueError(
            f"item {position} must have {expected} rows, as its grid is {list(grid)}, got {item.num_rows}"
        )
    apart = modality == VIDEO and family.videos_are_frames
    length, run_grid = (per_frame, (1, grid[1], grid[2])) if apart else (expected, grid)
    # A token's position follows from its distance to the first token of its run, so the rows of a run must be
    # at consecutive tokens.
    runs: list[Run] = []
    row = 0
    for span in spans:
        frame, inside = divmod(row, length)
        what = f"frame {frame} of item {position}" if length < expected else f"item {position}"
        if inside == 0:
            runs.append(Run(span.start, span.start + length, position, modality, run_grid, seconds))
        first = runs[-1].first
        if span.start != first + inside or span.source_start != row:
            found = f"token {span.start}" if span.source_start == row else f"row {span.source_start}"
            raise ValueError(
                f"the tokens of {what} must be one run that begins at token {first}: expected row {row} at "
                f"token {first + inside}, got {found}"
            )
        if inside + span.length > length:
            raise ValueError(
                f"{what} has {length} rows, got a span from row {inside} to row {inside + span.length - 1}: "
                "expected a token between two frames"
            )
        row += span.length
    return runs


def grid_of(position: int, item: Item) -> tuple[int, Grid, float | None]:
    """Return the modality of an item, its grid, and the seconds between its frames, or raise."""
    arguments = item.encoder_kwargs
    names = grid_names(item)
    if len(names) != 1:
        found = "both grid_thw and video_grid_thw" if names else "no grid_thw and no video_grid_thw"
        raise ValueError(f"item {position} has {found}: an image has the first, a video the second")
    [name] = names
    grid = arguments[name]
    is_grid = isinstance(grid, list | tuple) and len(grid) == 3
    if not is_grid or not all(isinstance(size, int) and not isinstance(size, bool) for size in grid):
        raise ValueError(f"{name} of item {position} must be a list of three ints, got {grid!r}")
    if min(grid) < 1:
        raise ValueError(f"{name} of item {position} must have sizes of at least 1, got {grid!r}")
    seconds = arguments.get("second_per_grid_t")
    if seconds is not None:
        if not isinstance(seconds, int | float) or isinstance(seconds, bool):
            raise TypeError(f"second_per_grid_t of item {position} must be a number, got {seconds!r}")
        if not 0 <= seconds < math.inf:
            raise ValueError(
                f"second_per_grid_t of item {position} must be finite and at least 0, got {seconds}"
            )
    return IMAGE if name == "grid_thw" else VIDEO, tuple(grid), seconds
