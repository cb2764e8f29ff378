"""Generated traces of image traffic: clients and image sizes are random, from a seed and published sizes.

A trace is a list of accesses, in the order in which a cache looks them up.
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
# and others, 2025, arXiv 2505.09999), weighted by rate. The log-normal distribution below has this median and
# percentile. It lacks two features of the data: many thumbnails, and a hard upper limit of the size.
MEDIAN_TOKENS, P95_TOKENS = 405, 1242
SIGMA = math.log(P95_TOKENS / MEDIAN_TOKENS) / 1.6449
MAX_TOKENS = 16384
# Screenshots of 1280x720, 1920x1080 and 2560x1440: about one token per 32x32 pixels.
SCREEN_TOKENS = (880, 2040, 3600)
PAGE_TOKENS = (1000, 1242)  # smallest and largest scanned page: the upper end of the published sizes
ICON_TOKENS = (6, 112)  # smallest and largest icon: the 5th and 25th percentile of the published sizes
DOCUMENTS, ICONS = 400, 2000
HARMONIC = list(accumulate(1 / rank for rank in range(1, ICONS + 1)))


class Access(NamedTuple):
    """One image of one request: its 32-byte key, its number of rows, the milliseconds of its encode."""

    key: bytes
    num_rows: int
    encode_ms: float


class Request(NamedTuple):
    """A request: its time, the number of its client, and its images."""

    at_s: float
    client: int
    images: list[Access]


Step = tuple[float, list[Access]]  # seconds to wait, then the images of a request
Client = Iterator[Step]


def encode_ms(num_rows: int) -> float:
    """Return an estimate of the milliseconds that the encode of one image takes.

    A parabola through the times measured for 2040 and 3600 rows, but at least 27 ms, the time of an encode
    that is limited by its launches. The three sizes of screenshots take 27, 61 and 137 ms (Qwen3-VL-8B's
    tower, bfloat16, one H100).
    """
    return max(27.0, 0.0193 * num_rows + 5.2e-6 * num_rows**2)


def image(name: object, num_rows: int, cost: float | None = None) -> Access:
    """Return an access to the image called `name`; its encode takes `cost` ms, or the estimate if None."""
    key = blake2b(str(name).encode(), digest_size=32).digest()
    return Access(key, num_rows, encode_ms(num_rows) if cost is None else cost)


class Traffic:
    """Random clients that begin at random times and send requests at random times."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._names = count()
        self._documents = [self._document() for _ in range(DOCUMENTS)]
        self._icons = [self.new_image(self.random.randint(*ICON_TOKENS)) for _ in range(ICONS)]

    def new_image(self, num_rows: int | None = None) -> Access:
        """Return an image that no client has sent before, of `num_rows` rows or of a random size."""
        if num_rows is None:
            drawn = MEDIAN_TOKENS * math.exp(SIGMA * self.random.gauss(0, 1))
            num_rows = min(max(1, round(drawn)), MAX_TOKENS)
        return image(next(self._names), num_rows)

    def chat(self) -> Client:
        """Six turns on average, a minute apart. Each sends all images so far; most turns add images."""
        images: list[Access] = []
        for turn in range(self._geometric(6)):
            if turn == 0 or self.random.random() < 0.6:
                images += [self.new_image() for _ in range(self._geometric(1.6))]
            yield self.random.expovariate(1 / 60), images

    def shared_chat(self) -> Client:
        """A chat whose requests begin with the logo of its application, and in half of them with a document.

        Some logos and documents are popular: many chats send them.
        """
        shared = [self._icons[self._popular(ICONS)]]
        if self.random.random() < 0.5:
            shared += self._documents[self._popular(DOCUMENTS)]
        for wait, images in self.chat():
            yield wait, [*shared, *images]

    def document(self) -> Client:
        """Three questions on average about one document, half a minute apart; some documents are popular."""
        pages = self._documents[self._popular(DOCUMENTS)]
        for _ in range(self._geometric(3)):
            yield self.random.expovariate(1 / 30), pages

    def agent(self) -> Client:
        """Twenty steps on average, five seconds apart. Each step sends the last five screenshots."""
        num_rows = self.random.choice(SCREEN_TOKENS)
        screens: list[Access] = []
        for _ in range(self._geometric(20)):
            screens = [*screens[-4:], self.new_image(num_rows)]
            yield self.random.expovariate(1 / 5), screens

    def crawl(self) -> Client:
        """Twenty web pages on average, with pictures that are sent once and icons that many pages share."""
        for _ in range(self._geometric(20)):
            icons = [self._icons[self._popular(ICONS)] for _ in range(self.random.randint(0, 2))]
            wait = self.random.expovariate(1)
            yield wait, [*icons, *(self.new_image() for _ in range(self._geometric(3)))]

    def accesses(self, rates: dict[str, float], length: int) -> list[Access]:
        """Return `length` accesses; `rates` is the number of new clients per second of each kind."""
        trace: list[Access] = []
        for request in self.requests(rates):
            trace += request.images
            if len(trace) >= length:
                break
        return trace[:length]

    def requests(self, rates: dict[str, float]) -> Iterator[Request]:
        """Yield requests in the order of their times, without end; `rates` as for `accesses`."""
        kinds, weights = list(rates), list(rates.values())
        waiting: list[tuple[float, int, int, Client, list[Access]]] = []
        arrival, numbers, clients = 0.0, count(), count()
        while True:
            if not waiting or arrival < waiting[0][0]:
                (kind,) = self.random.choices(kinds, weights)
                now, number, client = arrival, next(clients), getattr(self, kind)()
                arrival += self.random.expovariate(sum(weights))
            else:
                now, _, number, client, images = heapq.heappop(waiting)
                yield Request(now, number, images)
            step = next(client, None)
            if step is not None:
                heapq.heappush(waiting, (now + step[0], next(numbers), number, client, list(step[1])))

    def _document(self) -> list[Access]:
        return [self.new_image(self.random.randint(*PAGE_TOKENS)) for _ in range(self._geometric(12))]

    def _geometric(self, mean: float) -> int:
        return 1 + int(math.log(1 - self.random.random()) / math.log(1 - 1 / mean))

    def _popular(self, size: int) -> int:
        """Draw an index below `size` from Zipf's distribution: the k-th one has a weight of 1 / k."""
        ranks = HARMONIC[:size]
        return bisect_left(ranks, self.random.random() * ranks[-1])


# New clients per second of each kind, by trace.
TRACES: dict[str, dict[str, float]] = {
    "chats": {"chat": 1},
    "documents": {"document": 1},
    "agents": {"agent": 2},
    "crawl": {"crawl": 1},
    "mixed": {"chat": 0.5, "document": 0.2, "agent": 0.3, "crawl": 0.3},
}


def make_trace(name: str, length: int, seed: int = 0) -> list[Access]:
    """Return `length` accesses of one of `TRACES`; the same arguments give the same trace."""
    return Traffic(seed).accesses(TRACES[name], length)
