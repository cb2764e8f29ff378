"""Random traffic of SGLang: conversations whose turns are prefilled in chunks, several requests a step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import Modality

from sglang_scene.prompts import Prompt, Window, make_item
from sglang_scene.tower import Tower

MODALITIES = (Modality.IMAGE, Modality.IMAGE, Modality.VIDEO, Modality.AUDIO)
NUM_CONTENTS = 24


@dataclass(frozen=True)
class Content:
    """The content of an item: its seed, and the lengths of its spans."""

    seed: int
    lengths: tuple[int, ...]
    modality: Modality
    grid: tuple[int, ...] | None

    def item(self, offsets: Sequence[tuple[int, int]], modality: Modality) -> Any:
        data = {} if self.grid is None else {"grid": torch.tensor(self.grid)}
        return make_item(self.seed, *offsets, modality=modality, **data)


class Traffic:
    """The steps of a seed. Each iteration makes the same steps, with new objects of SGLang.

    Parameters
    ----------
    levels
        Deepstack levels.
    is_wild
        True: also traffic that SGLang computes wrongly or not at all. Spans of several items interleave, one
        content has several modalities, requests and batches mix precomputed and raw items, and the tower
        cannot encode some items.
    """

    def __init__(self, seed: int, num_steps: int, *, levels: int, is_wild: bool) -> None:
        self.seed, self.num_steps, self.levels, self.is_wild = seed, num_steps, levels, is_wild
        rng = random.Random(seed)
        self.contents = [
            Content(
                number,
                tuple(rng.randint(1, 8) for _ in range(rng.choice((1, 1, 1, 2, 3)))),
                rng.choice(MODALITIES),
                rng.choice((None, (1, 2, 4))),
            )
            for number in range(NUM_CONTENTS)
        ]

    def tower(self) -> Tower:
        """A tower that fails at some items of wild traffic, and returns too few rows for some."""
        tower = Tower(self.levels, ("tensor", "list", "3-D")[self.seed % 3])
        if self.is_wild:
            for content in self.contents[::5]:
                bad = content.item([(0, sum(content.lengths) - 1)], content.modality).hash
                (tower.failing if content.seed % 2 else tower.short).add(bad)
        return tower

    def __call__(self) -> Iterator[list[Window]]:
        rng = random.Random(self.seed + 1)
        waiting: list[Conversation] = []
        for _ in range(self.num_steps):
            is_precomputed = rng.random() < 0.2  # SGLang computes batches of one kind
            used: list[Conversation] = []
            windows = []
            for _ in range(rng.randint(1, 4)):
                if rng.random() < 0.2:
                    windows.append(Prompt(rng.randint(1, 12)).window())
                    continue
                fitting = [one for one in waiting if self.is_wild or one.is_precomputed == is_precomputed]
                if fitting and rng.random() < 0.7:
                    one = rng.choice(fitting)
                    waiting.remove(one)
                else:
                    one = Conversation(self, rng, is_precomputed)
                windows.append(one.next_chunk())
                used.append(one)
            yield windows
            waiting += [one for one in used if one.continues()]


class Conversation:
    """A prompt that grows by a turn of media and text, and is prefilled in chunks."""

    def __init__(self, traffic: Traffic, rng: random.Random, is_precomputed: bool) -> None:
        self._traffic, self._rng, self.is_precomputed = traffic, rng, is_precomputed
        self._turns = rng.randint(1, 3)
        self._length = rng.randint(0, 4)
        self._items: list[Any] = []
        self._grow()

    def next_chunk(self) -> Window:
        """The next tokens of the turn: a part of them, or all."""
        stop = self._rng.choice((len(self._prompt), self._rng.randint(self._done + 1, len(self._prompt))))
        start, self._done = self._done, stop
        return self._prompt.window(start, stop)

    def continues(self) -> bool:
        """Whether the conversation has more tokens. Appends the next turn when the last one is complete."""
        if self._done == len(self._prompt):
            if not self._turns:
                return False
            self._grow()
        return True

    def _grow(self) -> None:
        rng = self._rng
        self._turns -= 1
        contents = rng.choices(self._traffic.contents, k=rng.choice((0, 1, 1, 2, 3)))
        runs = [(number, length) for number, content in enumerate(contents) for length in content.lengths]
        if self._traffic.is_wild:
            rng.shuffle(runs)
        offsets: list[list[tuple[int, int]]] = [[] for _ in contents]
        for number, length in runs:
            self._length += rng.choice((0, 1, 3))
            offsets[number].append((self._length, self._length + length - 1))
            self._length += length
        self._length += rng.randint(1, 5)
        self._items += [self._item(*pair) for pair in zip(contents, offsets, strict=True)]
        self._prompt = Prompt(self._length, self._items)
        # A turn computes only its new tokens, or the whole prompt.
        self._done = rng.choice((0, getattr(self, "_done", 0)))

    def _item(self, content: Content, offsets: list[tuple[int, int]]) -> Any:
        rng, is_wild = self._rng, self._traffic.is_wild
        item = content.item(offsets, rng.choice(MODALITIES) if is_wild else content.modality)
        if rng.random() < 0.3 if is_wild else self.is_precomputed:
            rows = Tower(self._traffic.levels).rows(item)
            rows = rows[None] if rng.random() < 0.3 else rows
            item.precomputed_embeddings = rows.float() if rng.random() < 0.3 else rows
            item.feature = None
        elif rng.random() < 0.2:
            item.feature = item.feature.numpy()
        return item


def count_failures(windows: Sequence[Window], tower: Tower) -> int:
    """Number of items that overlap their window and that the tower cannot encode."""
    bad = tower.failing | tower.short
    return sum(
        item.precomputed_embeddings is None
        and item.hash in bad
        and any(first < start + length and last >= start for first, last in item.offsets)
        for prompt, start, length in windows
        for item in prompt.items
    )
