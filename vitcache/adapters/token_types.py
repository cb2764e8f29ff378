"""`token_types`: whether a token of a prompt is text, of an image or of a video."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitcache.adapters.families import GRID_FAMILIES

TEXT, IMAGE, VIDEO = 0, 1, 2


def token_types(ids: np.ndarray, config: Any) -> np.ndarray:
    """Return the type of each token: 0 is text, 1 an image, 2 a video.

    These are the `mm_token_type_ids` that the model's processor computes. GLM has the same id at the
    tokens of images and of videos: a token with that id is a video's if more video starts than video ends
    precede it in its row of `ids`.

    Parameters
    ----------
    ids
        Token ids of whole prompts, ``(T,)`` or ``(B, T)``, ints.
    config
        The config of the model. Its `model_type` is in `GRID_FAMILIES`.

    Returns
    -------
    numpy.ndarray
        int64, with the shape of `ids`.

    Raises
    ------
    TypeError
        If `ids` is not an array of ints, or the model type is not supported.

    Examples
    --------
    >>> import numpy as np
    >>> from types import SimpleNamespace
    >>> from vitcache.adapters.token_types import token_types
    >>> config = SimpleNamespace(model_type="qwen3_vl", image_token_id=90, video_token_id=91)
    >>> token_types(np.array([5, 90, 90, 6, 91]), config)
    array([0, 1, 1, 0, 2])
    """
    family = GRID_FAMILIES.get(config.model_type)
    if family is None:
        raise TypeError(
            f"the tokens of model type {config.model_type!r} are not known; model types whose tokens are: "
            f"{', '.join(GRID_FAMILIES)}"
        )
    if not isinstance(ids, np.ndarray) or not np.issubdtype(ids.dtype, np.integer):
        found = ids.dtype if isinstance(ids, np.ndarray) else type(ids).__name__
        raise TypeError(f"ids must be an array of ints, got {found}")
    types: np.ndarray = (ids == config.image_token_id).astype(np.int64)
    if family.videos_have_image_tokens:
        ends = (ids == config.video_end_token_id).astype(np.int32)
        open_videos = np.cumsum((ids == config.video_start_token_id) - ends, axis=-1, dtype=np.int32)
        types[(types == IMAGE) & (open_videos > 0)] = VIDEO
    else:
        types[ids == config.video_token_id] = VIDEO
    return types
