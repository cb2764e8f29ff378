"""`run_steps`: runs the prompts of one or several conversations through a model, step by step."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

from torch import Tensor

from vitcache.adapters.conversation import Conversation
from vitcache.adapters.disabling import DisabledCalls, is_disabled
from vitcache.adapters.prefill_plan import plan_steps
from vitcache.adapters.prefill_step import Embedded
from vitcache.adapters.transcript import NextPrompt
from vitcache.adapters.window_groups import Window
from vitcache.pipeline.items import Chunk
from vitcache.pipeline.prefetch import Prefetch
from vitcache.pipeline.results import ItemError


class StepResult(NamedTuple):
    """The result of one step.

    Attributes
    ----------
    hidden
        Hidden states ``(1, tokens, hidden)`` of the step's tokens, by the number of their prompt.
    errors
        The items that failed; `ItemError.chunk` is the number of the prompt. Its earlier tokens stay in the
        KV cache, and the prompt takes no part in the steps that follow.
    """

    hidden: dict[int, Tensor]
    errors: list[ItemError]


def run_steps(
    chats: Sequence[Conversation],
    tokens: Sequence[range],
    chunk_tokens: int,
    *,
    encode_ahead: bool,
    disabled: DisabledCalls,
) -> Generator[StepResult]:
    """Run the given tokens of the last prompt of each conversation; yield the result of each step.

    While the language model runs a step, the features of the next step are hashed and copied to the device.
    Before the first step, the tiers below the host tier are asked for the items of all steps.

    Parameters
    ----------
    chats
        Conversations over one model and one pipeline. Each has accepted its prompt.
    tokens
        Per conversation, the tokens that its `accept` returned.
    chunk_tokens
        Maximum number of tokens of a step, at least 1.
    encode_ahead
        As in `ChunkedPrefill`.
    disabled
        Counts the steps that did not use the cache, because of VITCACHE_DISABLE.

    Raises
    ------
    RuntimeError
        If a conversation accepted another prompt or was reset between two steps.
    """
    model = chats[0].model
    prompts = [chat.prompt for chat in chats]
    failed: set[int] = set()
    prefetch: Prefetch | None = None
    if model.pipeline.cache.has_lower_tiers and not is_disabled():
        prompts_ahead = zip(chats, tokens, strict=True)
        model.pipeline.fetch(
            [Chunk(chat.transcript.runs.items, part.start, len(part)) for chat, part in prompts_ahead]
        )
    try:
        for step, following in pairwise(chain(plan_steps(tokens, chunk_tokens), [{}])):
            windows: dict[int, Window] = {}
            for number, part in step.items():
                if number not in failed:
                    chats[number].check_current(prompts[number], part.start)
                    windows[number] = chats[number].window(part)
            if not windows:
                continue
            uses_cache = not is_disabled()
            if not uses_cache:
                disabled.count()
            numbers = list(windows)
            try:
                embedded = model.embed(list(windows.values()), uses_cache=uses_cache)
            except Exception:
                for number, window in windows.items():  # a signal handler may have run another prompt
                    chats[number].check_current(prompts[number], window.start)
                raise
            errors = [error._replace(chunk=numbers[error.chunk]) for error in embedded.errors]
            failed.update(error.chunk for error in errors)
            if prefetch is not None:
                model.pipeline.cancel(prefetch)  # its step is embedded already
                prefetch = None
            ahead = [
                Chunk(chats[number].transcript.runs.items, part.start, len(part))
                for number, part in following.items()
                if number not in failed
            ]
            if ahead and uses_cache:
                prefetch = model.pipeline.prefetch(ahead, encode=encode_ahead)
            yield StepResult(_run(chats, prompts, windows, embedded), errors)
    finally:
        if prefetch is not None:
            model.pipeline.cancel(prefetch)


def _run(
    chats: Sequence[Conversation],
    prompts: Sequence[NextPrompt | None],
    windows: dict[int, Window],
    embedded: Embedded,
) -> dict[int, Tensor]:
    """Run the language model on the windows without a failed item. Return the hidden states per prompt."""
    hidden: dict[int, Tensor] = {}
    numbers, parts = list(windows), list(windows.values())
    for group in embedded.groups:
        members = [numbers[position] for position in group.numbers]
        for number in members:
            chats[number].begin_step(prompts[number], windows[number].start)
        try:
            outputs = chats[members[0]].model.run(parts, embedded, group)
        except BaseException:
            # Some layers, but not all, may have added the tokens to the KV caches.
            for number in members:
                chats[number].reset()
            raise
        for number, output in zip(members, outputs, strict=True):
            chats[number].end_step(prompts[number], windows[number])
            hidden[number] = output
    return hidden


def describe_errors(errors: Sequence[ItemError]) -> str:
    """Return a message with the first error, both its numbers of rows, and the number of other errors."""
    first = errors[0]
    found = "none" if first.found is None else first.found
    rest = f"; {len(errors) - 1} more failed" if len(errors) > 1 else ""
    return f"item {first.item}: expected {first.expected} rows, got {found}: {first.cause}{rest}"
