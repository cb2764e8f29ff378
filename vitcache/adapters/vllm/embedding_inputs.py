"""Finds requests that carry embeddings in place of images.

vLLM accepts such requests if a connector has the role ``"ec_both"``. Its front end does not check the width
of the embeddings, and accepts their metadata without the embeddings. Either can raise in the model, and then
the engine ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SUFFIX = "_embeds"  # of the fields that contain embeddings
# Fields beside the pixels, the audio features or the embeddings of an item. Alone, they are not an item.
METADATA = frozenset(
    {
        "image_grid_thw",
        "image_sizes",
        "video_grid_thw",
        "video_image_sizes",
        "second_per_grid_ts",
        "timestamps",
        "audio_num_tokens",
        "audio_feature_lengths",
    }
)


def has_embedding_input(features: Iterable[Any]) -> bool:
    """Whether an item of a request has embeddings as its input, or metadata only.

    Parameters
    ----------
    features
        `mm_features` of vLLM's request. An item whose data is not in this process counts as an image.
    """
    return any(_is_embedding(feature.data) for feature in features if feature.data)


def _is_embedding(data: Any) -> bool:
    return any(name.endswith(SUFFIX) for name in data) or METADATA.issuperset(data)
