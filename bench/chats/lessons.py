"""The training of the reader of digits at full length, in the benches `accuracy` and `sglang_chat`."""

from __future__ import annotations

LESSONS = ((300, 1), (300, 2), (400, 4))  # training steps and turns, as `reader.teach` takes them
CARDS_PER_STEP = 64
DECKS = 6  # the number of times that the training cards use each digit
