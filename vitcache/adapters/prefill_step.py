"""`PrefillModel`: runs one step of chunked prefill, for one prompt or for a batch of prompts."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vitcache.adapters.model_pipeline import find_grid_family, image_encoder
from vitcache.adapters.uncached_step import embed_uncached
from vitcache.adapters.vision_tower import num_levels
from vitcache.adapters.window_groups import Group, Window, group_windows, without_windows
from vitcache.adapters.wrappers import unwrap
from vitcache.pipeline.items import Chunk
from vitcache.pipeline.results import ItemError
from vitcache.pipeline.vision_pipeline import VisionPipeline
from vitcache.placement.embed_call import EmbedCall


class Embedded(NamedTuple):
    """The inputs of the language model in one step: on the device, flattened, in the order of the groups.

    `is_visual` tells on the host which tokens are of images or videos, only for a model with deepstack
    levels. `errors` are the pipeline's; `ItemError.chunk` is the number of the window. A window with a failed
    item is in no group.
    """

    groups: list[Group]
    inputs_embeds: Tensor
    positions: Tensor
    is_visual: np.ndarray
    deepstack: Tensor | None
    errors: list[ItemError]


class PrefillModel:
    """A model with its head and a pipeline. Any number of conversations may share one.

    Raises
    ------
    TypeError
        As `ChunkedPrefill`.
    """

    def __init__(self, model: nn.Module, pipeline: VisionPipeline) -> None:
        self.base, _ = find_grid_family(model)
        if not hasattr(pipeline, "embed"):
            raise TypeError(f"pipeline must be a VisionPipeline, got {type(pipeline).__name__}")
        self.head: Any = unwrap(model).get_output_embeddings()
        if self.head is None:
            raise TypeError(f"{type(model).__name__} has no head, which computes the logits")
        self.pipeline = pipeline
        self._encode = image_encoder(model)
        # transformers 5.24 has renamed the argument, and warns about the earlier name.
        accepted = inspect.signature(unwrap(self.base.language_model).forward).parameters
        self._kv_argument = "cache" if "cache" in accepted else "past_key_values"

    def new_kv(self) -> Any:
        """Return an empty `DynamicCache` for the language model."""
        from transformers import DynamicCache

        return DynamicCache(config=self.base.config.get_text_config())

    @torch.no_grad()
    def embed(self, windows: Sequence[Window], *, uses_cache: bool) -> Embedded:
        """Build `inputs_embeds` of all windows, and the deepstack levels if the model has any.

        Without the cache, each item is encoded alone, and the pipeline is not used.
        """
        groups = group_windows(windows)
        num_tokens = groups[-1].offset + groups[-1].num_tokens
        # Rows: the token ids, the three positions. Padding has id 0 and position 0.
        numbers = np.zeros((4, num_tokens), np.int64)
        is_visual = np.zeros(num_tokens, np.bool_)
        levels = num_levels(self.base.config)
        chunks: dict[int, Chunk] = {}
        for group in groups:
            for row, number in enumerate(group.numbers):
                transcript, _, start, stop = windows[number]
                end = group.offset + (row + 1) * group.columns
                tokens = slice(end - (stop - start), end)
                numbers[0, tokens] = transcript.ids(start, stop)
                numbers[1:, tokens] = transcript.positions(start, stop)
                if levels:  # only deepstack needs to know the tokens of images
                    is_visual[tokens] = transcript.runs.token_types(start, stop) != 0
                chunks[number] = Chunk(transcript.runs.items, start, stop - start, tokens.start)
        weight = self.base.get_input_embeddings().weight
        on_device = _to_device(torch.from_numpy(numbers), weight.device)
        in_order = [chunks[number] for number in range(len(windows))]
        deepstack = weight.new_empty(levels, num_tokens, weight.shape[1]) if levels else None
        if uses_cache:
            result = self.pipeline.embed(in_order, on_device[0], weight, deepstack=deepstack)
        else:
            call = EmbedCall(on_device[0], weight, None, deepstack, None, None)
            result = embed_uncached(self._encode, self.pipeline.cache, in_order, call)
        if result.errors:
            failed = {error.chunk for error in result.errors}
            groups = [part for group in groups for part in without_windows(group, windows, failed)]
        return Embedded(groups, result.inputs_embeds, on_device[1:], is_visual, deepstack, result.errors)

    @torch.no_grad()
    def run(self, windows: Sequence[Window], embedded: Embedded, group: Group) -> list[Tensor]:
        """Run the language model on a group, which adds its tokens to the KV caches.

        Returns the hidden states ``(1, tokens, hidden)`` of each window of the group.
        """
        rows = [windows[number] for number in group.numbers]
        tokens = slice(group.offset, group.offset + group.num_tokens)
        shape = len(rows), group.columns
        visual: dict[str, Any] = {}
        if embedded.deepstack is not None:
            indices = np.flatnonzero(embedded.is_visual[tokens])
            if len(indices):
                device = embedded.inputs_embeds.device
                visual_tokens = _to_device(torch.from_numpy(indices), device)
                is_visual = torch.zeros(group.num_tokens, dtype=torch.bool, device=device)
                is_visual[visual_tokens] = True
                visual["visual_pos_masks"] = is_visual.view(shape)
                levels = embedded.deepstack[:, tokens].index_select(1, visual_tokens)
                visual["deepstack_visual_embeds"] = list(levels)
        kv, attention_mask = rows[0].kv, None
        if len(rows) > 1:
            from vitcache.adapters.joined_kv import join_kv

            kv, mask = join_kv([row.kv for row in rows], [row.length for row in rows])
            attention_mask = _to_device(mask, embedded.inputs_embeds.device)
        output = self.base.language_model(
            inputs_embeds=embedded.inputs_embeds[tokens].view(*shape, -1),
            position_ids=embedded.positions[:, tokens].view(3, *shape),
            attention_mask=attention_mask,
            use_cache=True,
            **{self._kv_argument: kv},
            **visual,
        )
        hidden = output.last_hidden_state
        return [hidden[row : row + 1, group.columns - window.length :] for row, window in enumerate(rows)]


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a host tensor on a device. The host does not wait: the copy to a GPU reads pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
