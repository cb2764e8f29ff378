"""Bytes per second of keys, beside BLAKE3 and SHA-256 alone: a part of the bench `keys`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from vitcache import KeyThreads, content_key
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer, gb_per_s

# Share of the speed of BLAKE3 alone with as many threads; a target that the design does not have.
RAW_SHARE = 0.9
JUDGED_BYTES = 20_000_000  # of a feature; the fixed costs of a call dominate the time of smaller features


@dataclass(frozen=True)
class RateCase:
    """`features` float32 tensors of `num_bytes` bytes each, hashed by each of the numbers of `threads`."""

    features: int
    num_bytes: int
    threads: tuple[int, ...] = (1, 2, 4)

    @property
    def name(self) -> str:
        """The number of features, and their size."""
        return f"{self.features} x {self.num_bytes / 1e6:.3g} MB"


def measure_rates(case: RateCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case on the CPU; yields a label before each part."""
    yield "features"
    features = [torch.rand(case.num_bytes // 4) for _ in range(case.features)]
    views = [feature.numpy().data.cast("B") for feature in features]
    expected = [content_key(feature) for feature in features]
    contenders: dict[str, Callable[[], object]] = {}
    raw = hash_alone(views, 1)
    with ExitStack() as stack:
        for count in case.threads:
            threads = stack.enter_context(KeyThreads(count))
            contenders[alone(count)] = check(alone(count), raw, partial(hash_alone, views, count))
            for name, call in [
                ("content_key", partial(hash_each, features, count)),
                ("KeyThreads", partial(compute, threads, features, b"")),
            ]:
                label = f"{name}, {count} threads"
                contenders[label] = check(label, expected, call)
        contenders["sha256 alone, 1 threads"] = lambda: [hashlib.sha256(view).digest() for view in views]
        yield "all in turns"
        samples = timer.rounds_us(contenders)
    num_bytes = sum(view.nbytes for view in views)
    rates = {name: gb_per_s(sample, num_bytes) for name, sample in samples.items()}
    for name, rate in rates.items():
        reference = alone(int(name.split()[-2]))
        limit = rates[reference].value
        judged = case.num_bytes >= JUDGED_BYTES and "alone" not in name
        recorder.add(
            case.name,
            name,
            "gb_per_s",
            "GB/s",
            rate,
            bytes_moved=num_bytes,
            against=(reference, limit),
            target=RAW_SHARE if judged else None,
            limit=RAW_SHARE * limit if judged else None,
            at_least=True,
        )


def alone(count: int) -> str:
    """Name the contender that runs BLAKE3 without a key."""
    return f"blake3 alone, {count} threads"


def hash_alone(views: Sequence[memoryview], count: int) -> list[bytes]:
    """Hash each buffer by BLAKE3 with `count` threads."""
    from blake3 import blake3

    return [blake3(max_threads=count).update(view).digest() for view in views]


def hash_each(items: Sequence[object], count: int, namespace: bytes = b"") -> list[bytes]:
    """Compute the keys of items one after the other, each with `count` threads."""
    return [content_key(item, namespace=namespace, num_threads=count) for item in items]


def compute(threads: KeyThreads, items: Sequence[object], namespace: bytes) -> list[bytes]:
    """Compute the keys of all items of a step."""
    futures = threads.submit_many(list(items), namespace=namespace)
    return [future.result().key for future in futures]


def check(
    name: str, expected: Sequence[bytes], call: Callable[[], Sequence[bytes]]
) -> Callable[[], Sequence[bytes]]:
    """Return `call`. Raise RuntimeError if its hashes are not the expected ones."""
    if call() != expected:
        raise RuntimeError(f"{name} returned hashes unlike those of one thread: it gets no number")
    return call
