"""Chats about handwritten digits: each turn shows a new card and asks for one digit of a card shown so far.

The digits are the 1797 images of 8x8 pixels that the scikit-learn wheel contains; nothing is downloaded.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitcache.demo.conversation import Picture, Prompt, grid_runs, make_prompt, process
from vitcache.demo.photos import Photo

SIDE = 8  # width and height of a digit in pixels
NAMES, PLACES, DIGITS = b"abcd", b"wxyz", b"0123456789"  # one token each: cards, places on a card, answers
HELD_OUT = 360  # the last digits of the set; their writers wrote none of the earlier digits
# The file of scikit-learn's wheel, where the package is not installed: requirements/sglang/venv.sh copies it.
COPY = Path(sys.prefix) / "share/vitcache/digits.csv.gz"


class Card(NamedTuple):
    """Four digits in one image, two by two, row by row."""

    picture: Picture
    digits: tuple[int, ...]


class Question(NamedTuple):
    """A question about one digit: the index of its card in the chat, and its place on the card."""

    card: int
    place: int


@dataclass(frozen=True)
class Chat:
    """One card and one question per turn. Questions beyond the number of cards follow the last turn.

    Every question is different, so the text before a question never contains its answer.
    """

    cards: Sequence[Card]
    questions: Sequence[Question]

    def answer(self, question: Question) -> int:
        """Return the token that answers a question."""
        return DIGITS[self.cards[question.card].digits[question.place]]

    def ids(self, config: Any) -> tuple[list[int], list[int]]:
        """Return the tokens up to the last answer, and the index of each question's answer.

        The first row of a card directly follows the card's name, and in a question the card's name directly
        follows the place. So the model finds both by looking at the previous token.
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
        """Yield the prompt of each question: all tokens before its answer, with the right earlier answers."""
        ids, answered_at = self.ids(config)
        for turn, end in enumerate(answered_at, 1):
            yield make_prompt(ids[:end], [card.picture for card in self.cards[:turn]], config)


def load_digits() -> tuple[np.ndarray, list[int]]:
    """Return the pixels of all digits, uint8 ``(1797, 8, 8)``, and the digits."""
    if COPY.exists():
        table = np.loadtxt(COPY, delimiter=",")
    else:
        from sklearn.datasets import load_digits as load_from_sklearn

        digits = load_from_sklearn()
        table = np.column_stack([digits.data, digits.target])
    return (table[:, :-1] * 15).astype(np.uint8).reshape(-1, SIDE, SIDE), table[:, -1].astype(int).tolist()


def load_cards(processor: Any, decks: int) -> tuple[list[Card], list[Card]]:
    """Return the training cards and the held-out cards.

    The training cards use each training digit `decks` times, each time in a new order.
    """
    pixels, labels = load_digits()
    rng = random.Random(0)
    first_held_out = len(labels) - HELD_OUT
    training = [i for _ in range(decks) for i in rng.sample(range(first_held_out), first_held_out)]
    held_out = range(first_held_out, len(labels))

    def cards(chosen: Sequence[int]) -> list[Card]:
        groups = [chosen[i : i + 4] for i in range(0, len(chosen) - 3, 4)]
        return [_card(pixels[list(group)], [labels[i] for i in group], processor) for group in groups]

    return cards(training), cards(held_out)


def _card(pixels: np.ndarray, labels: list[int], processor: Any) -> Card:
    """Make a card of four digits ``(4, 8, 8)``."""
    square = pixels.reshape(2, 2, SIDE, SIDE).swapaxes(1, 2).reshape(2 * SIDE, 2 * SIDE)
    photo = Photo("".join(map(str, labels)), np.repeat(square[:, :, None], 3, axis=2))
    return Card(process(photo, processor, grid_runs(processor)), tuple(labels))


def deal(cards: Sequence[Card], turns: int, rng: random.Random, *, ask_all: bool = False) -> Chat:
    """Return a chat about `turns` random cards; with `ask_all` it asks for every digit of every card."""
    dealt = rng.sample(cards, turns)
    unasked: list[Question] = []
    questions = []
    for turn in range(turns):
        unasked += [Question(turn, place) for place in range(len(PLACES))]
        questions.append(unasked.pop(rng.randrange(len(unasked))))
    if ask_all:
        questions += rng.sample(unasked, len(unasked))
    return Chat(dealt, questions)


def most_asked(chats: Sequence[Chat]) -> list[Card]:
    """Return the two cards with the most questions."""
    asked = Counter(id(chat.cards[question.card]) for chat in chats for question in chat.questions)
    cards = {id(card): card for chat in chats for card in chat.cards}
    return [cards[identity] for identity, _ in asked.most_common(2)]
