"""`plan_steps`: which tokens of which prompts each step of a chunked prefill runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def plan_steps(remaining: Sequence[range], chunk_tokens: int) -> Iterator[dict[int, range]]:
    """Yield the tokens of each step, per prompt that has any: at most `chunk_tokens` tokens in total.

    The prompts of a step share its tokens equally. Longer prompts use the tokens that a short prompt does not
    need. If there are more prompts than tokens, later prompts wait until earlier ones are complete.

    Parameters
    ----------
    remaining
        Per prompt, its tokens that must be run.
    chunk_tokens
        At least 1.

    Examples
    --------
    >>> from vitcache.adapters.prefill_plan import plan_steps
    >>> list(plan_steps([range(0, 9), range(4, 6)], chunk_tokens=8))
    [{1: range(4, 6), 0: range(0, 6)}, {0: range(6, 9)}]
    """
    left = {prompt: tokens for prompt, tokens in enumerate(remaining) if tokens}
    while left:
        shared = chunk_tokens
        some = sorted(list(left)[:chunk_tokens], key=lambda prompt: len(left[prompt]))
        step = {}
        for number, prompt in enumerate(some):
            length = min(len(left[prompt]), shared // (len(some) - number))
            step[prompt] = left[prompt][:length]
            left[prompt] = left[prompt][length:]
            shared -= length
            if not left[prompt]:
                del left[prompt]
        yield step
