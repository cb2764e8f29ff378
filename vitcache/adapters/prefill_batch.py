"""`prefill_batch`: runs the prompts of several conversations together, in the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitcache.adapters.chunked_prefill import ChunkedPrefill
from vitcache.adapters.prefill_steps import run_steps
from vitcache.adapters.transcript import NextPrompt
from vitcache.pipeline.items import Item
from vitcache.pipeline.results import ItemError


@dataclass(frozen=True)
class PrefillResult:
    """The result of `prefill_batch`.

    Attributes
    ----------
    logits
        Logits of the last token of each prompt, ``(prompts, vocabulary)``. All logits of a prompt with a
        failed item are NaN.
    errors
        The items that failed, sorted by prompt and item; empty if none failed. `ItemError.chunk` is the
        number of the prompt, `ItemError.item` the number of the item in its list.

    Examples
    --------
    >>> import torch
    >>> from vitcache.adapters.transformers import PrefillResult
    >>> result = PrefillResult(torch.tensor([[0.5, 2.0], [torch.nan, torch.nan]]), errors=[])
    >>> failed = result.logits.isnan().all(dim=1)
    >>> result.logits[~failed].argmax(dim=1)
    tensor([1])
    """

    logits: Tensor
    errors: list[ItemError]


@torch.no_grad()
def prefill_batch(
    chats: Sequence[ChunkedPrefill], input_ids: Sequence[Tensor], items: Sequence[Sequence[Item]]
) -> PrefillResult:
    """Run one prompt of each of several conversations, in common steps; each keeps its own KV cache.

    As for `ChunkedPrefill.prefill`, only the tokens are run that are not yet in the conversation's KV cache,
    and a call with one more token per prompt decodes. All prompts of a step share one step of the pipeline:
    one look-up, each missing image encoded once, one placement. Prompts of similar lengths also share one
    call of the language model, as a batch padded on the left.

    Parameters
    ----------
    chats
        Different `ChunkedPrefill` objects of one model and one pipeline. A step has at most as many tokens as
        the smallest of their `chunk_tokens`; the prompts share them.
    input_ids, items
        Per conversation, the arguments of `ChunkedPrefill.chunks`.

    Returns
    -------
    PrefillResult
        The logits of the prompts. If an item fails, its prompt ends before the step that needs it. The other
        prompts come out right.

    Raises
    ------
    TypeError
        If `chats`, `input_ids` or `items` is not a sequence, or an element of `chats` is not a
        `ChunkedPrefill`.
    ValueError
        If `chats` is empty, one occurs twice, or they differ in the model or the pipeline; if `input_ids` or
        `items` has another length than `chats`.
    TypeError, ValueError, IndexError
        As `ChunkedPrefill.chunks`, with the number of the prompt. No KV cache has changed.

    Notes
    -----
    For one thread at a time, as the objects in `chats`. Work is queued on the current stream. If the language
    model raises, the conversations of that call are reset.

    A call of the language model for several prompts copies the keys and values of all its conversations, one
    layer at a time, padded to the longest. On a GPU the host may wait for the device once per call:
    transformers reads the mask to see if the batch has padding. A model whose KV cache has layers of linear
    attention (Qwen3.5) or of a sliding window runs each prompt in a call of its own: padding would change the
    state of these layers.

    Examples
    --------
    `model` is a Qwen2.5-VL in eval mode. `inputs` are the outputs of its processor for a prompt of 11 tokens.
    Four of the tokens are one image.

    >>> import torch
    >>> from vitcache.adapters.transformers import ChunkedPrefill, image_items, prefill_batch, vision_pipeline
    >>> pipeline = vision_pipeline(model)
    >>> chats = [ChunkedPrefill(model, pipeline) for _ in range(2)]
    >>> input_ids = inputs["input_ids"]
    >>> items = image_items(model, input_ids, inputs["pixel_values"], inputs["image_grid_thw"])
    >>> result = prefill_batch(chats, [input_ids, torch.tensor([[5, 6, 7]])], [items, []])
    >>> tuple(result.logits.shape), result.errors, [chat.num_cached for chat in chats]
    ((2, 96), [], [11, 3])
    """
    prompts = _compare(chats, input_ids, items)
    tokens = [
        chat.conversation.accept(prompt, ids, of_prompt)
        for chat, prompt, ids, of_prompt in zip(chats, prompts, input_ids, items, strict=True)
    ]
    last: dict[int, Tensor] = {}
    errors: list[ItemError] = []
    steps = run_steps(
        [chat.conversation for chat in chats],
        tokens,
        min(chat.chunk_tokens for chat in chats),
        encode_ahead=all(chat.encode_ahead for chat in chats),
        disabled=chats[0].disabled,
    )
    for step in steps:
        last.update((number, hidden[:, -1]) for number, hidden in step.hidden.items())
        errors += step.errors
    for number in {error.chunk for error in errors}:
        last.pop(number, None)
    return PrefillResult(_logits(chats[0], last, len(chats)), sorted(errors, key=lambda error: error[:2]))


def _compare(
    chats: Sequence[ChunkedPrefill], input_ids: Sequence[Tensor], items: Sequence[Sequence[Item]]
) -> list[NextPrompt]:
    """Check all arguments before the first conversation changes."""
    for name, found in (("chats", chats), ("input_ids", input_ids), ("items", items)):
        if not isinstance(found, Sequence):
            kind = type(found).__name__
            raise TypeError(f"{name} must be a sequence with one element per conversation, got {kind}")
        if len(found) != len(chats):
            raise ValueError(
                f"{name} must have one element per conversation: expected {len(chats)}, got {len(found)}"
            )
    if not chats:
        raise ValueError("chats is empty")
    seen: dict[int, int] = {}
    for number, chat in enumerate(chats):
        if not isinstance(chat, ChunkedPrefill):
            raise TypeError(f"chats must be ChunkedPrefill objects, got {type(chat).__name__} at {number}")
        if id(chat) in seen:
            raise ValueError(f"chats {seen[id(chat)]} and {number} are the same object")
        seen[id(chat)] = number
        for name in ("base", "pipeline"):
            mine, first = (getattr(each.conversation.model, name) for each in (chat, chats[0]))
            if mine is not first:
                noun = "model" if name == "base" else name
                raise ValueError(f"chat {number} has another {noun} than chat 0")
    prompts = []
    for number, (chat, ids, of_prompt) in enumerate(zip(chats, input_ids, items, strict=True)):
        try:
            prompts.append(chat.conversation.compare(ids, of_prompt))
        except (TypeError, ValueError, IndexError) as error:
            raise type(error)(f"prompt {number}: {error}") from error
    return prompts


def _logits(chat: ChunkedPrefill, last: dict[int, Tensor], num_prompts: int) -> Tensor:
    """Return the logits of the hidden states of the prompts' last tokens. NaN: the prompt has none."""
    head = chat.conversation.model.head
    numbers = sorted(last)
    hidden = [last[number] for number in numbers]
    some: Tensor = head(torch.cat(hidden) if hidden else head.weight.new_empty(0, head.weight.shape[1]))
    if len(numbers) == num_prompts:
        return some
    logits = some.new_full((num_prompts, some.shape[1]), torch.nan)
    logits[numbers] = some
    return logits
