"""`Window` and `Group`: the tokens of each prompt in a step, and which prompts one forward runs together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vitcache.adapters.transcript import Transcript


class Window(NamedTuple):
    """Tokens ``[start, stop)`` of one prompt, and the KV cache of its conversation."""

    transcript: Transcript
    kv: Any
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.stop - self.start


class Group(NamedTuple):
    """Windows that one call of the language model runs, as the rows of a batch padded on the left.

    `offset` is the position of the batch's first token in the step.
    """

    numbers: list[int]
    offset: int
    columns: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens with the padding."""
        return len(self.numbers) * self.columns


def group_windows(windows: Sequence[Window]) -> list[Group]:
    """Divide windows into groups, in which at most half of the tokens of each row are padding."""
    joined: list[list[int]] = []
    if len(windows) > 1:
        from vitcache.adapters.joined_kv import can_join

        if all(can_join(window.kv) for window in windows):
            for number in sorted(range(len(windows)), key=lambda number: -windows[number].length):
                if joined and 2 * windows[number].length >= windows[joined[-1][0]].length:
                    joined[-1].append(number)
                else:
                    joined.append([number])
    groups: list[Group] = []
    offset = 0
    for numbers in joined or [[number] for number in range(len(windows))]:
        groups.append(Group(numbers, offset, windows[numbers[0]].length))
        offset += groups[-1].num_tokens
    return groups


def without_windows(group: Group, windows: Sequence[Window], failed: set[int]) -> list[Group]:
    """Return a group without its failed windows: if it has any, each window that is left is a group.

    The windows keep their places in the step. A new layout would need a second step of the pipeline, and with
    `agree` the ranks whose items did not fail would not run it.
    """
    if failed.isdisjoint(group.numbers):
        return [group]
    parts = []
    for row, number in enumerate(group.numbers):
        end, length = group.offset + (row + 1) * group.columns, windows[number].length
        if number not in failed:
            parts.append(Group([number], end - length, length))
    return parts
