"""Chunked prefill of a transformers model: a pipeline builds `inputs_embeds`, the KV cache is reused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from vitcache.adapters.conversation import Conversation
from vitcache.adapters.disabling import DisabledCalls
from vitcache.adapters.prefill_step import PrefillModel
from vitcache.adapters.prefill_steps import describe_errors, run_steps
from vitcache.arguments import to_int
from vitcache.handles import describe_count, described, refuse_copies
from vitcache.pipeline.items import Item
from vitcache.pipeline.vision_pipeline import VisionPipeline


class ChunkedPrefill:
    """Runs the prompts of one conversation through a model in chunks, and reuses its KV cache between them.

    The KV cache keeps the tokens, images and videos that a prompt has in common with the previous prompt;
    only the rest is prefilled. So each turn of a chat prefills only its new tokens. To decode, append the new
    token and call `prefill` again: the model then runs one token. While the language model runs on one chunk,
    the features of the next chunk are hashed and copied to the device. If the pipeline's cache has tiers
    below its host tier, they are asked for the items of a prompt before its first chunk, and the host waits
    at most the cache's `fetch_timeout_s`. `prefill_batch` runs the prompts of
    several conversations together.

    For a prompt the host compares all token ids once; the rest of its work depends on the new tokens and on
    the `Item` objects that the last prompt did not have. The bench `decode` measures this work.

    Parameters
    ----------
    model
        A model of one of the families that `vision_pipeline` supports, with its head, in eval mode, all of it
        on one device.
    pipeline
        Builds `inputs_embeds` and the deepstack levels. `vision_pipeline` makes one.
    chunk_tokens
        Tokens per chunk; the last chunk of a prompt may be shorter. Bounds the memory of a step.
    encode_ahead
        Also encode the images of the next chunk while the language model runs on this one. This gains nothing
        on a GPU that the prefill keeps busy, as measured on an H100.

    Attributes
    ----------
    kv
        The `DynamicCache` of the language model. It may be replaced by a copy with the same tokens.
    num_cached
        Number of tokens of the last prompt that are in `kv`, counted from its beginning.
    chunk_tokens, encode_ahead
        As given. They may be set between two prompts.
    conversation
        The KV cache and the tokens in it, for `prefill_batch`.
    disabled_calls
        Number of chunks whose images were encoded without the pipeline, because VITCACHE_DISABLE was set. The
        first conversation of a `prefill_batch` counts its steps.

    Raises
    ------
    TypeError
        If `model` is not one of these families (the message names its model type), if it has no head, if
        `pipeline` is not a `VisionPipeline`, `chunk_tokens` is not an int or `encode_ahead` is not a bool.
    ValueError
        If `chunk_tokens` is less than 1.

    Notes
    -----
    An object is for one conversation and for one thread at a time. Any number of objects may share a model
    and a pipeline. Work is queued on the current stream. No gradients are computed. After the weights
    changed, call `reset`.

    If a prompt differs from the previous one before its end, the tokens behind the difference are removed
    from the KV cache. Layers of linear attention (Qwen3.5) cannot remove tokens, and layers of a sliding
    window cannot once the window is full: then the prompt is prefilled from its beginning.

    While the environment variable VITCACHE_DISABLE is set to another value than ``""`` and ``"0"``, each
    chunk encodes all of its images, one at a time, without the pipeline: nothing is looked up, cached or
    prefetched. The KV cache is reused as before. A running process may set the variable.

    Examples
    --------
    `model` is a Qwen2.5-VL in eval mode. `inputs` are the outputs of its processor for a prompt of 11 tokens.
    Four of the tokens are one image.

    >>> from vitcache.adapters.transformers import ChunkedPrefill, image_items, vision_pipeline
    >>> driver = ChunkedPrefill(model, vision_pipeline(model), chunk_tokens=8)
    >>> input_ids = inputs["input_ids"]
    >>> items = image_items(model, input_ids, inputs["pixel_values"], inputs["image_grid_thw"])
    >>> [hidden.shape[1] for hidden in driver.chunks(input_ids, items)]
    [8, 3]
    >>> logits = driver.prefill(input_ids, items)  # all tokens are in the KV cache: only the last one is run
    >>> driver.num_cached
    11
    """

    def __init__(
        self,
        model: nn.Module,
        pipeline: VisionPipeline,
        chunk_tokens: int = 8192,
        *,
        encode_ahead: bool = False,
    ) -> None:
        self.chunk_tokens = chunk_tokens
        if not isinstance(encode_ahead, bool):
            raise TypeError(f"encode_ahead must be a bool, got {type(encode_ahead).__name__}")
        self.encode_ahead = encode_ahead
        self.disabled = DisabledCalls("ChunkedPrefill")
        self.conversation = Conversation(PrefillModel(model, pipeline))

    @property
    def chunk_tokens(self) -> int:
        return self._chunk_tokens

    @chunk_tokens.setter
    def chunk_tokens(self, value: int) -> None:
        self._chunk_tokens = to_int("chunk_tokens", value, 1)

    @property
    def kv(self) -> Any:
        return self.conversation.kv

    @kv.setter
    def kv(self, value: Any) -> None:
        self.conversation.kv = value

    @property
    def num_cached(self) -> int:
        return self.conversation.num_cached

    @property
    def disabled_calls(self) -> int:
        return self.disabled.number

    def reset(self) -> None:
        """Empty the KV cache, to begin another conversation or after the weights changed."""
        self.conversation.reset()

    __reduce_ex__ = refuse_copies("make another `ChunkedPrefill` over the same model and pipeline")

    @described
    def __repr__(self) -> str:
        return f"{describe_count(self.num_cached, 'token')} cached, chunks of {self.chunk_tokens}"

    def prefill(self, input_ids: Tensor, items: Sequence[Item]) -> Tensor:
        """Run a prompt as `chunks` does; return the logits ``(1, vocabulary)`` of its last token."""
        for hidden in self.chunks(input_ids, items):
            last = hidden[:, -1]
        with torch.no_grad():
            logits: Tensor = self.conversation.model.head(last)
        return logits

    def chunks(self, input_ids: Tensor, items: Sequence[Item]) -> Iterator[Tensor]:
        """Run a prompt chunk by chunk; yield the hidden states of the language model's last layer.

        Parameters
        ----------
        input_ids
            Token ids of the whole prompt, ints, ``(T,)`` or ``(1, T)``. Pass a CPU tensor: for a CUDA tensor
            the host waits. Ids at the tokens of images may be any ints. Keep them the same in every turn: the
            KV cache is reused up to the first id that differs.
        items
            The images of the prompt, each with its `grid_thw`, and its videos, each with its
            `video_grid_thw`, such as from `image_items` and `video_items`. Pass the same objects in every
            turn, or items with keys: the features of other items are hashed to find out whether the KV cache
            contains them. Given `rows` without a key never match those of an earlier prompt.

        Yields
        ------
        Tensor
            Hidden states ``(1, tokens of the chunk, hidden)``. Tokens that are in the KV cache are skipped.
            If all tokens are in the KV cache, the last token is computed again.

        Raises
        ------
        ValueError
            If `input_ids` has no tokens, more than one prompt, or a placeholder that no item covers. If an
            item does not have either `grid_thw` or `video_grid_thw`, of three ints; if its tokens are not the
            run, or the runs of its frames, that its grid asks for, or it has another number of rows; if they
            end after the prompt, or touch the tokens of another image or video. The KV cache has not changed.
        TypeError
            If `input_ids` is not a tensor of int32 or int64, `items` is not a sequence of `Item`, or
            `second_per_grid_t` of an item is not a number. The KV cache has not changed.
        IndexError
            If the id of a text token is not in the embedding table, or as `Items`. The KV cache has not
            changed.
        RuntimeError
            If the load or the encode of an item failed, or gave another number of rows than expected; its
            `__cause__` is the original exception. Earlier chunks stay in the KV cache. If another prompt was
            run, `reset` was called, or the caller changed `kv`, between two chunks of this prompt. If the
            language model raises, its exception passes through, and the conversation is reset.
        """
        chat = self.conversation
        tokens = chat.accept(chat.compare(input_ids, items), input_ids, items)
        steps = run_steps(
            [chat], [tokens], self._chunk_tokens, encode_ahead=self.encode_ahead, disabled=self.disabled
        )
        with closing(steps):  # also if the caller stops early: cancels the prefetch of the next chunk
            for hidden, errors in steps:
                if errors:
                    raise RuntimeError(describe_errors(errors)) from errors[0].cause
                yield hidden[0]
