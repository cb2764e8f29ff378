"""Random calls of the module with tensors of random memory: `python fuzz_calls.py SECONDS [SEED]`.

Each element that a call may read or write lies in memory of its own: AddressSanitizer, if the process has it,
ends the process at any other byte. A storage is resized before a call, or by Python code that the call runs.
Results of accepted calls are compared with torch's. Each failed call is printed with its seed.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitcache import EmbeddingCache, PinnedRing, Span, content_key, embed_tokens, scatter_embeddings

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HOSTILE = (-1, 1 << 31, 1 << 60, (1 << 60) + 1, (1 << 63) - 1, 1 << 63, -(1 << 63), 10**30)
REFUSALS = (ValueError, TypeError, IndexError, RuntimeError)


class Scene:
    """The random numbers and tensors of one call, and the resize that may come in between."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.tensors: list[Tensor] = []
        self.is_resized = False

    def up_to(self, most: int) -> int:
        return self.random.randint(0, most)

    def number(self, usual: int) -> int:
        """Return `usual`, rarely a hostile number."""
        return usual if self.up_to(30) else self.random.choice((*HOSTILE, usual + 1))

    def rows(self, count: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return random rows: contiguous, with a gap between them, or at the end of a larger storage."""
        gap, before = self.random.choice((0, 0, 1, 3)), self.random.choice((0, 0, 2))
        stride = width + gap
        length = before + max(0, (count - 1) * stride + width if count else 0)
        made = torch.randn(length).to(dtype).as_strided((count, width), (stride, 1), before)
        self.tensors.append(made)
        return made

    def resize(self) -> None:
        """Change the size of the storage of one tensor."""
        storages = [tensor.untyped_storage() for tensor in self.tensors]
        storages = [storage for storage in storages if storage.resizable()]
        if not storages:
            return
        storage = self.random.choice(storages)
        size = storage.nbytes()
        storage.resize_(self.random.choice((0, size // 2, max(0, size - 1), 2 * size)))
        self.is_resized = True

    def start(self, token: int) -> Any:
        """Return a start, which rarely resizes a storage while the call reads it."""
        return Start(token, self.resize) if self.up_to(12) == 0 else self.number(token)


class Start:
    """A start that runs `act` while a call converts it."""

    def __init__(self, token: int, act: Callable[[], object]) -> None:
        self.token, self.act = token, act

    def __index__(self) -> int:
        self.act()
        return self.token


def items(
    scene: Scene, width: int, dtype: torch.dtype, tokens: int
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return items, their spans, and (start, length, source_start, rows) of each run."""
    found: list[Any] = []
    spans: list[Any] = []
    runs: list[Any] = []
    token = 0
    cache = EmbeddingCache(width, dtype=dtype, device="cpu", device_bytes=1 << 14, page_rows=2)
    for number in range(scene.up_to(3)):
        count = scene.up_to(min(4, max(0, tokens - token)))
        rows = scene.rows(count, width, dtype)
        if scene.up_to(3) == 0 and count and cache.put(bytes([number]) * 32, rows):
            found.append(cache.get(bytes([number]) * 32))
        else:
            found.append(rows)
        first = scene.up_to(count)
        if scene.up_to(1):
            start = scene.start(token)
            spans.append(start)
            runs.append((start.token if isinstance(start, Start) else start, count, 0, rows))
        else:
            span = Span(scene.number(token), scene.number(count - first), scene.number(first))
            spans.append([span])
            runs.append((*span, rows))
        token += count
    return found, spans, runs


def place(target: Tensor, runs: list[Any]) -> Tensor:
    """Return the target after the runs that fit. Call it before a storage is resized."""
    expected = target.clone()
    for start, length, first, rows in runs:
        if min(start, length, first) >= 0 and first + length <= len(rows) and start + length <= len(target):
            expected[start : start + length] = rows[first : first + length]
    return expected


def scatter(scene: Scene) -> None:
    tokens, width, dtype = scene.up_to(12), 1 + scene.up_to(5), scene.random.choice(DTYPES)
    target = scene.rows(tokens, width, dtype)
    found, spans, runs = items(scene, width, dtype, tokens)
    expected = place(target, runs)
    if scene.up_to(8) == 0:
        scene.resize()
    scatter_embeddings(target, found, spans)
    check(scene, target, expected)


def embed(scene: Scene) -> None:
    tokens, width, dtype = scene.up_to(12), 1 + scene.up_to(5), scene.random.choice(DTYPES)
    weight = scene.rows(1 + scene.up_to(5), width, dtype)
    ids = torch.tensor([scene.up_to(len(weight) - 1) for _ in range(tokens)], dtype=torch.int64)
    if tokens and scene.up_to(10) == 0:
        ids[scene.up_to(tokens - 1)] = scene.random.choice((-1, len(weight), (1 << 62)))
    scene.tensors.append(ids)
    found, spans, runs = items(scene, width, dtype, tokens)
    expected = place(weight[ids.clamp(0, len(weight) - 1)], runs)
    if scene.up_to(8) == 0:
        scene.resize()
    check(scene, embed_tokens(ids, weight, found, spans), expected)


def put(scene: Scene) -> None:
    width, dtype = 1 + scene.up_to(5), scene.random.choice(DTYPES)
    cache = EmbeddingCache(width, dtype=dtype, device="cpu", device_bytes=1 << 12, page_rows=2)
    rows = scene.rows(1 + scene.up_to(6), width, dtype)
    expected = rows.clone()
    if scene.up_to(2) == 0:
        scene.resize()
    cache.put(bytes(32), rows)
    lease = cache.get(bytes(32))
    if lease is not None:
        check(scene, lease.to_tensor(), expected)


def copy(scene: Scene) -> None:
    with PinnedRing(capacity_bytes=4096, device="cpu", num_threads=1) as ring:
        for _ in range(8):
            scene.tensors.clear()
            shape = [scene.up_to(4) for _ in range(scene.up_to(3))]
            array = np.asarray(scene.random.choices(range(100), k=int(np.prod(shape)))).reshape(shape)
            array = array.astype(scene.random.choice(("f4", "f4", "i2", "u1")))
            for axis in range(len(shape)):
                array = np.flip(array, axis) if scene.up_to(2) == 0 else array
            array = array.transpose(scene.random.sample(range(len(shape)), len(shape)))
            source = torch.from_numpy(array.copy()) if scene.up_to(1) else array
            expected = torch.from_numpy(array.copy())
            if isinstance(source, Tensor):
                scene.tensors.append(source)
            target = torch.zeros(array.shape, dtype=expected.dtype)
            scene.tensors.append(target)
            if scene.up_to(8) == 0:
                scene.resize()
            ring.copy_to(target, source).synchronize()
            check(scene, target, expected)


def key(scene: Scene) -> None:
    rows = scene.rows(scene.up_to(6), 1 + scene.up_to(5), scene.random.choice(DTYPES))
    expected = content_key(rows.clone())
    if scene.up_to(2) == 0:
        scene.resize()
    if content_key(rows) != expected and not scene.is_resized:
        raise AssertionError("a key depends on strides")


def check(scene: Scene, actual: Tensor, expected: Tensor) -> None:
    if not scene.is_resized and not torch.equal(actual, expected):
        raise AssertionError(f"got {actual}, expected {expected}")


CALLS = (scatter, embed, put, copy, key)


def main(seconds: float, seed: int) -> int:
    """Make calls until the time is over. Returns the number of wrong calls."""
    print(f"fuzz_calls: {seconds:g} seconds, seed {seed}", flush=True)
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    number = wrong = 0
    while time.monotonic() < end:
        call = CALLS[number % len(CALLS)]
        scene = Scene(seed + number)
        try:
            call(scene)
            outcome = "accepted"
        except REFUSALS:
            outcome = "refused"
        except Exception as error:
            wrong += 1
            outcome = "wrong"
            print(f"{call.__name__}, seed {seed + number}: {type(error).__name__}: {error}", flush=True)
        outcomes[f"{call.__name__} {outcome}"] += 1
        number += 1
    print("  " + ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items())), flush=True)
    return wrong


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(float(words[0]), int(words[1]) if len(words) > 1 else time.time_ns() % (1 << 32)) > 0)
