"""A script: forks children while other threads use a pipeline, a cache and key threads; each child uses them.

    python busy_forks.py NUMBER_OF_CHILDREN

It prints one line per child that fails or hangs, then the number of children that did not. A child that hangs
prints its tracebacks.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from hang_guard import run_in_child

from vitcache import Chunk, EmbeddingCache, Item, KeyThreads, Span, VisionPipeline, content_key

WIDTH, ROWS = 8, 4
HANG_SECONDS = 60  # on a machine that does other work, too
NUM_THREADS = 6

torch.set_num_threads(1)


def feature(number: int) -> torch.Tensor:
    return torch.full((ROWS, WIDTH), float(number % 251))


class Scene:
    def __init__(self) -> None:
        self.cache = EmbeddingCache(
            WIDTH,
            dtype=torch.float32,
            device="cpu",
            device_bytes=6 * 2048,
            host_bytes=6 * 2048,
            checksum=True,
        )
        self.used = VisionPipeline(lambda features, items: features, self.cache)
        self.unused = VisionPipeline(lambda features, items: features, self.cache)
        self.keys = KeyThreads(2)
        self.ends = threading.Event()

    def step(self, pipeline: VisionPipeline, number: int, *, prefetches: bool) -> None:
        items = [
            Item((lambda seed=seed: feature(seed)) if seed % 2 else feature(seed), Span(place, ROWS))
            for place, seed in ((0, number), (ROWS, number + 1))
        ]
        chunks = [Chunk(items, 0, 2 * ROWS)]
        handle = pipeline.prefetch(chunks, encode=number % 3 > 0) if prefetches else None
        if handle is not None and number % 2:
            handle.wait(HANG_SECONDS)
        input_ids, weight = torch.zeros(2 * ROWS, dtype=torch.int64), torch.zeros(1, WIDTH)
        inputs_embeds, errors = pipeline.embed(chunks, input_ids, weight)
        assert errors == [], errors
        assert torch.equal(inputs_embeds, torch.cat([feature(number), feature(number + 1)])), number
        if handle is not None:
            pipeline.cancel(handle)

    def put_and_get(self, number: int) -> None:
        key = content_key(feature(number), namespace=b"put")
        with self.cache.claim(key) as claim:
            if claim.is_mine:
                claim.put(feature(number))
        lease = self.cache.get(key)
        if lease is not None:
            with lease:
                assert torch.equal(lease.to_tensor(), feature(number))

    def hash(self, number: int) -> None:
        for future in self.keys.submit_many([feature(number), lambda: feature(number)]):
            assert future.result(HANG_SECONDS).key == content_key(feature(number))

    def work(self, start: int) -> None:
        number = start
        while not self.ends.is_set():
            number += 7
            self.step(self.used, number, prefetches=True)
            self.put_and_get(number)
            self.hash(number)

    def check_child(self) -> None:
        """Use the objects of the parent, in a child."""
        for number in (3, 4):
            self.step(self.used, number, prefetches=True)
            self.step(self.unused, 100 + number, prefetches=True)
            self.put_and_get(number)
            self.hash(number)
        self.cache.check_integrity()
        for owner in (self.used, self.unused, self.keys):
            owner.close()


def main() -> None:
    scene = Scene()
    threads = [threading.Thread(target=scene.work, args=(1000 * number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    healthy = 0
    for number in range(int(sys.argv[1])):
        time.sleep(0.003 * (number % 5))  # the fork meets the threads at another point
        code = run_in_child(scene.check_child)
        healthy += code == 0
        if code:
            print(f"child {number} ended with {code}", flush=True)
    scene.ends.set()
    for thread in threads:
        thread.join()
    scene.check_child()
    print(f"{healthy} children did not fail", flush=True)


if __name__ == "__main__":
    main()
