"""Refuses requests that carry embeddings in place of images.

With the role ``"ec_both"``, vLLM 0.33.0 accepts such requests, which it refuses by default. It also accepts
their metadata without the embeddings. Both can raise an error in the model, which stops the
engine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vitcache.adapters.vllm.plugin import logger

# Fields that contain embeddings. Phi-4-multimodal names its pixels "input_image_embeds".
EMBEDDINGS = frozenset({"image_embeds", "video_embeds", "audio_embeds"})
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
        # Not required from clients, and accepted with the names above.
        "feature_attention_mask",
        "patch_positions",
        "tgt_sizes",
        "use_audio_in_video",
        "video_tgt_sizes",
    }
)


def has_embedding_input(features: Iterable[Any]) -> bool:
    """Whether an item of a request has embeddings as its input, or metadata only.

    Parameters
    ----------
    features
        `mm_features` of vLLM's request. An item whose data is not in this process counts as an image.
    """
    return any(_is_embedding(feature.data) for feature in features if getattr(feature, "data", None))


def _is_embedding(data: Any) -> bool:
    return not EMBEDDINGS.isdisjoint(data) or METADATA.issuperset(data)


class EmbeddingGate:
    """Refuses requests with embeddings, or with metadata alone, as inputs.

    Parameters
    ----------
    accepts
        Whether all requests are admitted.

    Notes
    -----
    Only the scheduler's thread may call. Each item is checked once; a streaming session gets further items
    later. vLLM ends a refused request with the finish reason "error".
    """

    def __init__(self, accepts: bool) -> None:
        self._accepts = accepts
        self._checked: dict[str, int] = {}  # request -> number of its items that were checked
        self._refused: set[str] = set()

    def admits(self, request: Any) -> bool:
        """Return False if a request is refused. It must not be scheduled then."""
        if self._accepts:
            return True
        num_items, num_checked = len(request.mm_features), self._checked.get(request.request_id, 0)
        if num_items == num_checked:
            return True
        if has_embedding_input(request.mm_features[num_checked:]):
            if request.request_id not in self._refused:
                logger.warning(
                    "request %s has embeddings or only metadata as an input, and is refused: the option "
                    "accept_embeds of ec_connector_extra_config is False",
                    request.request_id,
                )
            self._refused.add(request.request_id)
            return False
        self._checked[request.request_id] = num_items
        return True

    def take_refused(self) -> set[str]:
        """Return the refused requests, and forget them."""
        refused, self._refused = self._refused, set()
        return refused

    def finish(self, request: Any) -> None:
        """Forget a finished request."""
        self._checked.pop(request.request_id, None)
