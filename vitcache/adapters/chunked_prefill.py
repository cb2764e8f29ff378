"""Chunked prefill of a transformers model: `inputs_embeds` from a pipeline, the KV cache kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitcache.adapters.model_pipeline import find_grid_family
from vitcache.adapters.prompt import Prompt
from vitcache.adapters.vision_tower import num_levels
from vitcache.arguments import to_int
from vitcache.pipeline.items import Chunk, Item
from vitcache.pipeline.prefetch import Prefetch
from vitcache.pipeline.results import ItemError
from vitcache.pipeline.vision_pipeline import VisionPipeline


class ChunkedPrefill:
    """Runs the prompts of one conversation through a model in chunks, and keeps its KV cache between them.

    A prompt that begins with what is in the KV cache, the same tokens and the same images, is prefilled from
    there on only. So a chat costs its new turn, and a decoded token is a prompt with one token more. While
    the language model runs on one chunk, the features of the next are hashed and moved to the device.

    Parameters
    ----------
    model
        A Qwen2.5-VL or Qwen3-VL with its head, in eval mode, all of it on one device.
    pipeline
        What builds `inputs_embeds` and the deepstack levels, such as from `vision_pipeline`.
    chunk_tokens
        Tokens of a chunk, the last one of a prompt excepted: bounds the memory of a step.
    encode_ahead
        Encode the images of the next chunk behind this one's language model, too. A GPU that a prefill keeps
        busy gains nothing by it (the design's measurements on an H100); one that has room may.

    Attributes
    ----------
    kv
        The `DynamicCache` of the language model.
    num_cached
        Tokens that are in it, of the beginning of the last prompt.

    Raises
    ------
    TypeError
        If the model is of another family or has no head, or `chunk_tokens` is no int.
    ValueError
        If `chunk_tokens` is not at least 1.

    Notes
    -----
    One conversation, one thread at a time; any number of them may share a model and a pipeline. Work goes to
    the current stream. Gradients end here. After the weights changed call `reset`.
    """

    def __init__(
        self,
        model: nn.Module,
        pipeline: VisionPipeline,
        chunk_tokens: int = 8192,
        *,
        encode_ahead: bool = False,
    ) -> None:
        self._base, _ = find_grid_family(model)
        self._head: Any = model.get_output_embeddings()  # type: ignore[operator]
        if self._head is None:
            raise TypeError(f"{type(model).__name__} has no head that gives logits")
        self._pipeline = pipeline
        self._chunk_tokens = to_int("chunk_tokens", chunk_tokens, 1)
        self._encode_ahead = encode_ahead
        self.reset()

    def reset(self) -> None:
        """Begin another conversation: forget the KV cache."""
        from transformers import DynamicCache

        self.kv = DynamicCache(config=self._base.config.get_text_config())
        self.num_cached = 0
        self._prompt: Prompt | None = None

    def prefill(self, input_ids: Tensor, items: Sequence[Item]) -> Tensor:
        """Run a prompt; return the logits ``(1, vocabulary)`` of its last token. Else as `chunks`."""
        for hidden in self.chunks(input_ids, items):
            last = hidden[:, -1]
        with torch.no_grad():
            logits: Tensor = self._head(last)
        return logits

    def chunks(self, input_ids: Tensor, items: Sequence[Item]) -> Iterator[Tensor]:
        """Run a prompt; yield per chunk what the last layer of the language model gives.

        Parameters
        ----------
        input_ids
            The whole prompt, ``(T,)`` or ``(1, T)``, best on the CPU: a CUDA tensor is waited for. What
            stands at the tokens of images does not matter.
        items
            Its images, each with its `grid_thw`, such as from `image_items`. Best the same objects in every
            turn, or ones with keys: else what may be in the KV cache is hashed, to know whether it is.

        Yields
        ------
        Tensor
            Hidden states ``(1, tokens of the chunk, hidden)``, of all tokens of the prompt but those that
            the KV cache had. If it had them all, the last one is run again.

        Raises
        ------
        ValueError
            If there are no tokens, more than one prompt, or a placeholder has no item; if an item has no
            grid, is no run of as many tokens as its grid asks for, reaches beyond the prompt, or follows
            another without a token between them.
        TypeError
            If `input_ids` is no tensor of ints, or an item no `Item`.
        RuntimeError
            If rows of an item are missing, from what was raised by its load or encode: the chunks before it
            stay in the KV cache. If another prompt was run between two chunks of this one, or `reset` called.
        """
        prompt = Prompt(self._base, input_ids, items, self._pipeline.key)
        self._keep_common_prefix(prompt)
        starts = range(self.num_cached, len(prompt), self._chunk_tokens)
        ahead: Prefetch | None = None
        try:
            for start in starts:
                embedded = self._embed(prompt, start)
                if ahead is not None:
                    self._pipeline.cancel(ahead)  # what it has not done yet would come too late
                    ahead = None
                if start != starts[-1]:
                    chunk = self._window(prompt, start + self._chunk_tokens)
                    ahead = self._pipeline.prefetch([chunk], encode=self._encode_ahead)
                yield self._run(prompt, start, *embedded)
        finally:
            if ahead is not None:
                self._pipeline.cancel(ahead)

    def _keep_common_prefix(self, prompt: Prompt) -> None:
        """Cut off the KV cache what another prompt does not begin with, or its last token."""
        common = 0
        if self._prompt is not None:
            common = self._prompt.common_prefix(prompt, min(self.num_cached, len(prompt) - 1))
        if common == 0:
            self.reset()
        else:
            # Whoever decoded with it may have left more there than this driver did.
            self.kv.crop(common - self.kv.get_seq_length())
            self.num_cached = common
        self._prompt = prompt

    @torch.no_grad()
    def _embed(self, prompt: Prompt, start: int) -> tuple[Tensor, Tensor | None]:
        """Return `inputs_embeds` of a chunk and, where the model has them, its deepstack levels."""
        chunk = self._window(prompt, start)
        weight = self._base.get_input_embeddings().weight
        levels = num_levels(self._base.config)
        deepstack = weight.new_empty(levels, chunk.length, weight.shape[1]) if levels else None
        input_ids = prompt.input_ids[start : start + chunk.length]
        result = self._pipeline.embed([chunk], input_ids, weight, deepstack=deepstack)
        if result.errors:
            raise RuntimeError(_describe(result.errors)) from result.errors[0].cause
        return result.inputs_embeds, deepstack

    @torch.no_grad()
    def _run(self, prompt: Prompt, start: int, inputs_embeds: Tensor, deepstack: Tensor | None) -> Tensor:
        """Run the language model on a chunk, which is in the KV cache then."""
        if self._prompt is not prompt or self.num_cached != start:
            raise RuntimeError(
                f"the chunk at token {start} was to follow, but another prompt was run meanwhile, or the "
                f"conversation reset: the KV cache has {self.num_cached} tokens"
            )
        stop = start + len(inputs_embeds)
        first, last = np.searchsorted(prompt.image_tokens, (start, stop))
        visual: dict[str, Any] = {}
        if deepstack is not None and first < last:
            tokens = prompt.device_image_tokens[first:last] - start
            visual["visual_pos_masks"] = prompt.is_image[None, start:stop]
            visual["deepstack_visual_embeds"] = list(deepstack.index_select(1, tokens))
        try:
            output = self._base.language_model(
                inputs_embeds=inputs_embeds[None],
                position_ids=prompt.positions[:, :, start:stop],
                past_key_values=self.kv,
                use_cache=True,
                **visual,
            )
        except BaseException:
            self.reset()  # some layers may have the chunk, and others not
            raise
        self.num_cached = stop
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _window(self, prompt: Prompt, start: int) -> Chunk:
        return Chunk(prompt.items, start, min(self._chunk_tokens, len(prompt) - start))


def _describe(errors: Sequence[ItemError]) -> str:
    first = errors[0]
    found = "none" if first.found is None else first.found
    others = f", and {len(errors) - 1} more failed" if len(errors) > 1 else ""
    return f"item {first.item}: {first.expected} rows were expected, there are {found}: {first.cause}{others}"
