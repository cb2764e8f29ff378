"""Chats about handwritten digits: every turn shows one more card of digits and asks for one seen so far.

The digits are the 1797 that lie inside the scikit-learn wheel, 8x8 pixels each; nothing is downloaded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from vitcache.demo.conversation import Picture, Prompt, make_prompt, process
from vitcache.demo.photos import Photo

SIDE = 8  # pixels of a digit, across and down
NAMES, PLACES, DIGITS = b"abcd", b"wxyz", b"0123456789"  # a token each: cards, places on a card, answers
HELD_OUT = 360  # the last digits of the set, from writers that the others are not from


class Card(NamedTuple):
    """Four digits in one image, two by two, row by row."""

    picture: Picture
    digits: tuple[int, ...]


class Question(NamedTuple):
    """Which of a chat's cards is asked about, and which place on it."""

    card: int
    place: int


@dataclass(frozen=True)
class Chat:
    """One card per turn, each before its question; questions beyond the cards follow the last turn.

    No question comes twice, so no answer stands in the text before it.
    """

    cards: Sequence[Card]
    questions: Sequence[Question]

    def answer(self, question: Question) -> int:
        """The token that answers a question."""
        return DIGITS[self.cards[question.card].digits[question.place]]

    def ids(self, config: Any) -> tuple[list[int], list[int]]:
        """The tokens up to the last answer, and for each question where its answer stands.

        Nothing stands between a name and its card's rows: one look back finds the name of a row, as it finds
        the place before the name in a question.
        """
        ids, answered_at = [], []
        for turn, question in enumerate(self.questions):
            if turn < len(self.cards):
                ids += [NAMES[turn], *[config.image_token_id] * self.cards[turn].picture.num_rows]
            ids += [PLACES[question.place], NAMES[question.card]]
            answered_at.append(len(ids))
            ids.append(self.answer(question))
        return ids, answered_at

    def prompts(self, config: Any) -> Iterator[Prompt]:
        """For each question all that comes before its answer, the right answers to earlier ones included."""
        ids, answered_at = self.ids(config)
        for turn, end in enumerate(answered_at, 1):
            yield make_prompt(ids[:end], [card.picture for card in self.cards[:turn]], config)


def load_cards(processor: Any, decks: int) -> tuple[list[Card], list[Card]]:
    """Cards to learn from, `decks` times all their digits in another order, and cards of held-out digits."""
    digits = load_digits()
    pixels, labels = (digits.images * 15).astype(np.uint8), digits.target.tolist()
    chance = random.Random(0)
    first_held_out = len(labels) - HELD_OUT
    learn = [i for _ in range(decks) for i in chance.sample(range(first_held_out), first_held_out)]
    held_out = range(first_held_out, len(labels))

    def cards(chosen: Sequence[int]) -> list[Card]:
        fours = [chosen[i : i + 4] for i in range(0, len(chosen) - 3, 4)]
        return [_card(pixels[list(four)], [labels[i] for i in four], processor) for four in fours]

    return cards(learn), cards(held_out)


def _card(pixels: np.ndarray, labels: list[int], processor: Any) -> Card:
    """Lay four digits ``(4, 8, 8)`` out on one image."""
    square = pixels.reshape(2, 2, SIDE, SIDE).swapaxes(1, 2).reshape(2 * SIDE, 2 * SIDE)
    photo = Photo("".join(map(str, labels)), np.repeat(square[:, :, None], 3, axis=2))
    return Card(process(photo, processor), tuple(labels))


def deal(cards: Sequence[Card], turns: int, chance: random.Random, *, ask_all: bool = False) -> Chat:
    """A chat about `turns` of `cards`; with `ask_all` its end asks for every digit not asked for yet."""
    dealt = chance.sample(cards, turns)
    left: list[Question] = []
    questions = []
    for turn in range(turns):
        left += [Question(turn, place) for place in range(len(PLACES))]
        questions.append(left.pop(chance.randrange(len(left))))
    if ask_all:
        questions += chance.sample(left, len(left))
    return Chat(dealt, questions)
