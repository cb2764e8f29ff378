"""Traces of image traffic: made up, from a seed and published sizes, or read from a user's own log.

A trace is a list of accesses in the order in which the cache would see them.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from hashlib import blake2b
from itertools import accumulate, count
from typing import NamedTuple

# Tokens per image of a production service: median and 95th percentile of ServeGen's multimodal data (Xiang
# and others, 2025, arXiv 2505.09999), weighted by rate. A log-normal distribution has both; the data also
# have a heap of thumbnails and a hard upper edge, which it has not.
MEDIAN_TOKENS, P95_TOKENS = 405, 1242
SIGMA = math.log(P95_TOKENS / MEDIAN_TOKENS) / 1.6449
MOST_TOKENS = 16384
# Screenshots of 1280x720, 1920x1080 and 2560x1440, at about a token per 32x32 pixels.
SCREEN_TOKENS = (880, 2040, 3600)
PAGE_TOKENS = (1000, 1242)  # of a scanned page: the upper edge of the published sizes
ICON_TOKENS = (6, 112)  # their 5th and 25th percentile
DOCUMENTS, ICONS = 400, 2000
HARMONIC = list(accumulate(1 / rank for rank in range(1, ICONS + 1)))


class Access(NamedTuple):
    """One image of one request: its 32-byte key, its rows, and what encoding it takes."""

    key: bytes
    num_rows: int
    encode_ms: float


Step = tuple[float, list[Access]]  # seconds to wait, then the images of a request
Client = Iterator[Step]


def encode_ms(num_rows: int) -> float:
    """Return about how long one image takes to encode.

    A parabola through what was measured for 2040 and 3600 rows, and not less than a launch-bound encode
    takes: 27, 61 and 137 ms for the three sizes of screenshots (Qwen3-VL-8B's tower, bfloat16, one H100).
    """
    return max(27.0, 0.0193 * num_rows + 5.2e-6 * num_rows**2)


def image(name: object, num_rows: int, cost: float | None = None) -> Access:
    """Return an access to the image of that name."""
    key = blake2b(str(name).encode(), digest_size=32).digest()
    return Access(key, num_rows, encode_ms(num_rows) if cost is None else cost)


class Traffic:
    """Clients that come at random and send requests at random, until there are enough accesses."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._names = count()
        self._documents = [self._document() for _ in range(DOCUMENTS)]
        self._icons = [self.fresh(self.random.randint(*ICON_TOKENS)) for _ in range(ICONS)]

    def fresh(self, num_rows: int | None = None) -> Access:
        """Return an image that nobody has sent yet."""
        if num_rows is None:
            drawn = MEDIAN_TOKENS * math.exp(SIGMA * self.random.gauss(0, 1))
            num_rows = min(max(1, round(drawn)), MOST_TOKENS)
        return image(next(self._names), num_rows)

    def chat(self) -> Client:
        """Six turns on average, a minute apart; each sends all images so far, and most bring a new one."""
        images: list[Access] = []
        for turn in range(self._geometric(6)):
            if turn == 0 or self.random.random() < 0.6:
                images += [self.fresh() for _ in range(self._geometric(1.6))]
            yield self.random.expovariate(1 / 60), images

    def document(self) -> Client:
        """Three questions on average about a document of a library, half a minute apart; few are popular."""
        pages = self._documents[self._popular(DOCUMENTS)]
        for _ in range(self._geometric(3)):
            yield self.random.expovariate(1 / 30), pages

    def agent(self) -> Client:
        """Twenty steps on average, five seconds apart; each sends the last five screenshots."""
        num_rows = self.random.choice(SCREEN_TOKENS)
        screens: list[Access] = []
        for _ in range(self._geometric(20)):
            screens = [*screens[-4:], self.fresh(num_rows)]
            yield self.random.expovariate(1 / 5), screens

    def crawl(self) -> Client:
        """Twenty web pages on average: pictures that nobody sends again, and icons that many pages share."""
        for _ in range(self._geometric(20)):
            icons = [self._icons[self._popular(ICONS)] for _ in range(self.random.randint(0, 2))]
            yield self.random.expovariate(1), [*icons, *(self.fresh() for _ in range(self._geometric(3)))]

    def accesses(self, rates: dict[str, float], length: int) -> list[Access]:
        """Return so many accesses of clients that come so often: kind to clients per second."""
        trace: list[Access] = []
        kinds, weights = list(rates), list(rates.values())
        waiting: list[tuple[float, int, Client, list[Access]]] = []
        arrival, numbers = 0.0, count()
        while len(trace) < length:
            if not waiting or arrival < waiting[0][0]:
                (kind,) = self.random.choices(kinds, weights)
                now, client = arrival, getattr(self, kind)()
                arrival += self.random.expovariate(sum(weights))
            else:
                now, _, client, images = heapq.heappop(waiting)
                trace += images
            step = next(client, None)
            if step is not None:
                heapq.heappush(waiting, (now + step[0], next(numbers), client, list(step[1])))
        return trace[:length]

    def _document(self) -> list[Access]:
        return [self.fresh(self.random.randint(*PAGE_TOKENS)) for _ in range(self._geometric(12))]

    def _geometric(self, mean: float) -> int:
        return 1 + int(math.log(1 - self.random.random()) / math.log(1 - 1 / mean))

    def _popular(self, size: int) -> int:
        """Draw from Zipf's distribution: the k-th of `size` as often as 1 / k."""
        ranks = HARMONIC[:size]
        return bisect_left(ranks, self.random.random() * ranks[-1])


# Clients per second of each trace.
TRACES: dict[str, dict[str, float]] = {
    "chats": {"chat": 1},
    "documents": {"document": 1},
    "agents": {"agent": 2},
    "crawl": {"crawl": 1},
    "mixed": {"chat": 0.5, "document": 0.2, "agent": 0.3, "crawl": 0.3},
}


def make_trace(name: str, length: int, seed: int = 0) -> list[Access]:
    """Return so many accesses of one of `TRACES`; the same ones for the same arguments."""
    return Traffic(seed).accesses(TRACES[name], length)
