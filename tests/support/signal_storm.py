"""Signals at random moments of calls of a cache and of pipelines that four threads use; a program for a test.

    python signal_storm.py NUM_SIGNALS SEED

Its main thread runs random calls. A timer interrupts each one after a random time, and the handler raises a
random exception. Three more threads use the same cache and the same pipeline. After each signal the cache
must be consistent; in the end every row must have the right bytes, and nothing may be held. Prints one line
of JSON.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import random
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from caches import make_cache
from hang_guard import wait_until
from pipeline_scene import HIDDEN, Tower, encode_one, feature, make_ids, make_weight

from vitcache import Chunk, EmbeddingCache, Item, Items, Lease, Span, VisionPipeline
from vitcache.testing import inspect

NUM_KEYS = 24
NUM_TOKENS = 12
DELAYS = (-5.5, -2.0)  # powers of ten, in seconds from the begin of a call to its signal
HANG_SECONDS = 120
KEYS = [random.Random(number).randbytes(32) for number in range(NUM_KEYS)]
ROWS = [torch.full((1 + number % 5, HIDDEN), float(number)) for number in range(NUM_KEYS)]
FEATURES = [feature(number, 3) for number in range(NUM_KEYS)]
ENCODED = [encode_one(patches) for patches in FEATURES]
IDS, WEIGHT = make_ids(NUM_TOKENS), make_weight()


class Struck(RuntimeError):
    """The RuntimeError of the signal handler."""


RAISED = (KeyboardInterrupt, Struck, SystemExit)


class Storm:
    """Raises exceptions in the main thread, in calls only."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._is_armed = False
        self.raised = 0
        self.by_call: Counter[str] = Counter()
        signal.signal(signal.SIGALRM, self._strike)

    def _strike(self, _: int, __: FrameType | None) -> None:
        if self._is_armed:
            self._is_armed = False
            self.raised += 1
            raise self._rng.choice(RAISED)("struck")

    def run(self, call: Callable[[], object]) -> None:
        """Run a call, and strike it after a random time. An item's error may have taken the exception."""
        before = self.raised
        try:
            self._is_armed = True
            signal.setitimer(signal.ITIMER_REAL, 10 ** self._rng.uniform(*DELAYS))
            call()
            self._is_armed = False
        except RAISED:
            pass
        finally:
            self._is_armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.raised > before:
            self.by_call[call.__name__] += 1


class User:
    """Random calls of one thread on a cache and a pipeline."""

    def __init__(self, cache: EmbeddingCache, pipeline: VisionPipeline, rng: random.Random) -> None:
        self.cache = cache
        self.pipeline = pipeline
        self.rng = rng
        self.steps = 0

    def number(self) -> int:
        return min(int(self.rng.expovariate(1 / 6)), NUM_KEYS - 1)

    def check(self, lease: Lease, number: int) -> None:
        with lease:
            assert torch.equal(lease.to_tensor(), ROWS[number]), f"wrong rows of key {number}"

    def put(self) -> None:
        number, tier = self.number(), self.rng.choice(["device", "device", "host", "both"])
        self.cache.put(KEYS[number], ROWS[number], tier=tier)

    def get(self) -> None:
        number = self.number()
        lease = self.cache.get(KEYS[number])
        if lease is not None:
            self.check(lease, number)

    def get_many(self) -> None:
        numbers = [self.number() for _ in range(5)]
        found = self.cache.get_many([KEYS[number] for number in numbers])
        for number, lease in zip(numbers, found, strict=True):
            if lease is not None:
                self.check(lease, number)

    def reserve(self) -> None:
        number = self.number()
        reservation = self.cache.reserve(KEYS[number], len(ROWS[number]))
        if reservation is not None:
            with reservation:
                reservation.write(ROWS[number])
                reservation.commit()

    def expect(self) -> None:
        self.cache.expect([len(ROWS[self.number()]) for _ in range(3)])

    def claim(self) -> None:
        number = self.number()
        with self.cache.claim(KEYS[number]) as claim:
            if claim.is_mine:
                claim.put(ROWS[number])
            else:
                claim.wait()

    def stats(self) -> None:
        self.cache.stats()

    def embed(self) -> None:
        self.check_step(self.pipeline)

    def check_step(self, pipeline: VisionPipeline) -> None:
        numbers = [self.number() for _ in range(3)]
        result = pipeline.embed(chunks(numbers), IDS, WEIGHT)
        failed = {error.item for error in result.errors}
        for error in result.errors:  # the encoder or a load was struck
            assert isinstance(error.cause, Struck), error
        for place, number in enumerate(numbers):
            rows = result.inputs_embeds[4 * place : 4 * place + 3]
            right = torch.zeros_like(rows) if place in failed else ENCODED[number]
            assert torch.equal(rows, right), f"wrong rows of feature {number}"

    def prefetch(self) -> None:
        numbers = [self.number() for _ in range(3)]
        handle = self.pipeline.prefetch(chunks(numbers), encode=self.rng.random() < 0.5)
        if self.rng.random() < 0.2:
            handle.cancel()

    def close(self) -> None:
        """Use and close a pipeline and a cache of its own."""
        with make_cache(8, 8, checksum=True) as cache, VisionPipeline(Tower(), cache) as pipeline:
            pipeline.prefetch(chunks([1, 2, 3]))
            self.check_step(pipeline)

    def calls(self) -> list[Callable[[], None]]:
        often = [self.put, self.get, self.get_many, self.reserve, self.expect, self.claim, self.stats]
        return [*often, self.embed, self.embed, self.prefetch]

    def step(self) -> None:
        self.rng.choice(self.calls())()
        self.steps += 1


def chunks(numbers: list[int]) -> list[Chunk]:
    items = [Item(FEATURES[number], Span(4 * place, 3)) for place, number in enumerate(numbers)]
    return [Chunk(Items(items), 0, NUM_TOKENS)]


def own_threads() -> list[str]:
    gc.collect()
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vitcache")]


def work(user: User, done: threading.Event, failures: list[BaseException]) -> None:
    try:
        while not done.is_set():
            user.step()
    except BaseException as error:
        failures.append(error)


def main(num_signals: int, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-4)  # threads change within calls, too
    faulthandler.dump_traceback_later(HANG_SECONDS, repeat=True)
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    cache = make_cache(24, 16, checksum=True)
    pipeline = VisionPipeline(Tower(), cache, max_rows_per_encode=4)
    done, failures = threading.Event(), []
    users = [User(cache, pipeline, random.Random(rng.random())) for _ in range(4)]
    threads = [threading.Thread(target=work, args=(user, done, failures), daemon=True) for user in users[1:]]
    for thread in threads:
        thread.start()
    storm, calls = Storm(rng), [*users[0].calls(), users[0].close]
    broken = 0
    while storm.raised < num_signals and not failures:
        before = storm.raised
        storm.run(rng.choice(calls))
        users[0].steps += 1
        if storm.raised > before:
            faulthandler.dump_traceback_later(HANG_SECONDS, repeat=True)
            broken += bool(inspect(cache).violations)
    done.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    pipeline.prefetch([]).wait()
    gc.collect()
    cache.check_integrity()
    stats = cache.stats()
    held = {"leased_pages": stats.leased_pages, "claims": inspect(cache).num_claims}
    found = 0
    for number, key in enumerate(KEYS):
        lease = cache.get(key)
        if lease is not None:
            users[0].check(lease, number)
            found += 1
    users[0].embed()
    pipeline.close()
    cache.close()
    steps = [user.steps for user in users]
    report = {"signals": storm.raised, "broken": broken, "held": held, "rows": found, "steps": steps}
    return report | {"by_call": dict(storm.by_call)}


if __name__ == "__main__":
    result = main(int(sys.argv[1]), int(sys.argv[2]))
    wait_until(lambda: not own_threads())  # all caches and pipelines are freed, also those never closed
    print(json.dumps(result), flush=True)
