"""Claim: compared with an encode, a given key costs almost nothing, and a computed key is a small part.

The bench measures the work of a cold step before its encode: the step gets the keys of its images, and looks
them up, which misses. The keys are given, or `KeyThreads` computes them from the image file, from its decoded
pixels (uint8) or from the processor's features (float32). The contender "known file" hits: the key of the
file's bytes leads to the rows, without decoding, image processor and encode.

The bench also measures the cost of a key, per image and source, and bytes per second (`key_rates.py`).

A CPU needs minutes to encode one image by a tower of real size. There, the bench measures no encode in these
cases, and compares with the image processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import torch

from vitcache import EmbeddingCache, KeyAliases, KeyThreads, Namespace, content_key, processor_fingerprint
from vitcache.bench.claims.key_rates import RateCase, compute, hash_each, measure_rates
from vitcache.bench.claims.keys_figure import draw as draw
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample, Timer

NAME = "keys"
GIVEN_PART = 0.01  # target of the design: share of the encode time
THREADS = (1, 2, 4)
CLAIMS_CPU = True
CPU_ROUNDS = 12  # a round runs the image processor on all images, which takes seconds on a CPU


@dataclass(frozen=True)
class KeysCase:
    """`images` photographs of ``width x height`` pixels in one step; `model` is a size of the demo model."""

    images: int
    width: int
    height: int
    model: str

    @property
    def name(self) -> str:
        """The number of images, and their width and height."""
        return f"{self.images}x{self.width}x{self.height}"

    @property
    def is_judged(self) -> bool:
        """Whether the tower has the size of a real model."""
        return self.model == "8b"


CASES = {
    "full": [
        *(KeysCase(images, 1280, 720, "8b") for images in (1, 8)),
        *(RateCase(features, 21_600_000) for features in (1, 8)),
    ],
    "smoke": [KeysCase(2, 320, 240, "tiny"), RateCase(3, 2_000_000, (1, 2))],
}


class Scene:
    """The images of a case as files, pixels and features, and the tower that encodes them, if `has_tower`."""

    def __init__(self, case: KeysCase, device: torch.device) -> None:
        from PIL import Image

        from vitcache.demo.model import SIZES, build_processor, build_tower
        from vitcache.demo.photos import load_photos

        size = SIZES[case.model]
        self.has_tower = device.type == "cuda" or not case.is_judged
        self.tower = build_tower(size, device) if self.has_tower else None
        self.processor: Any = build_processor(size)
        self.files = []
        for photo in load_photos(case.images):
            file = BytesIO()
            resized = Image.fromarray(photo.pixels).resize((case.width, case.height))
            resized.save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())
        self.pixels = [self.decode(file) for file in self.files]
        processed = [self.process(pixels) for pixels in self.pixels]
        self.features = [features["pixel_values"] for features in processed]
        grids = torch.cat([features["image_grid_thw"] for features in processed])
        self.num_rows = (grids.prod(1) // self.processor.merge_size**2).tolist()
        self.on_device = [feature.to(device) for feature in self.features]
        self._batch = torch.cat(self.on_device), grids.to(device)
        self.row_width = size.text["hidden_size"] * (1 + len(size.vision["deepstack_visual_indexes"]))
        self.dtype = size.dtype

    def decode(self, file: bytes) -> np.ndarray:
        """Decode the pixels of a file."""
        from PIL import Image

        with Image.open(BytesIO(file)) as image:
            return np.asarray(image.convert("RGB"))

    def process(self, pixels: np.ndarray) -> Any:
        """Run the image processor on pixels."""
        return self.processor(pixels, input_data_format="channels_last", return_tensors="pt")

    def encode(self) -> object:
        """Run the tower on all images; their features are on the device already."""
        if self.tower is None:
            raise RuntimeError("this case has no tower")
        with torch.inference_mode():
            return self.tower(*self._batch)


def run_case(case: KeysCase | RateCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    if isinstance(case, RateCase):
        yield from measure_rates(case, recorder, timer)
        return
    if timer.device.type == "cpu":
        timer = timer.with_repeats(min(timer.repeats, CPU_ROUNDS))
    yield from measure_step(case, recorder, timer)


def measure_step(case: KeysCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure the keys of one step; yields a label before each part."""
    yield "photographs and tower"
    scene = Scene(case, timer.device)
    namespace = Namespace("bench", processor=processor_fingerprint(scene.processor)).digest()
    sources: dict[str, Sequence[Any]] = {
        "file": scene.files,
        "pixels": scene.pixels,
        "features": scene.features,
    }
    if timer.device.type == "cuda":
        sources["device features"] = scene.on_device
    given = [content_key(feature, namespace=namespace) for feature in scene.features]
    with ExitStack() as stack:
        cold, warm = (make_cache(scene, timer.device) for _ in range(2))
        for key, num_rows in zip(given, scene.num_rows, strict=True):
            warm.put(key, torch.zeros(num_rows, scene.row_width, dtype=scene.dtype, device=timer.device))
        references: dict[str, Callable[[], object]] = {
            "process": lambda: [scene.process(scene.decode(file)) for file in scene.files]
        }
        if scene.has_tower:
            references["encode"] = scene.encode
        contenders: dict[str, Callable[[], object]] = {"given": lambda: look_up(cold, given, scene.num_rows)}
        num_bytes: dict[str, int] = {}
        for count in THREADS:
            threads = stack.enter_context(KeyThreads(count))
            for source, items in sources.items():
                name = f"{source}, {count} threads"
                num_bytes[name] = sum(map(size_of, items))
                keys = compute(threads, items, namespace)
                if keys != [content_key(item, namespace=namespace) for item in items]:
                    raise RuntimeError(f"{name} returned keys unlike content_key's: it gets no number")
                contenders[name] = lambda threads=threads, items=items: look_up(
                    cold, compute(threads, items, namespace), scene.num_rows
                )
        known = KnownFiles(warm, scene, given, namespace)
        if known.find() != len(given) or look_up(cold, given, scene.num_rows):
            raise RuntimeError(
                "expected hits for all known files and misses for all unknown keys, got something else: "
                "they get no number"
            )
        contenders["known file"] = known.find
        yield "encode and image processor"
        # Not in turns with the keys: torch's threads spin for a while after a call, on the same cores.
        samples = timer.rounds_us(references)
        yield "all keys in turns"
        samples |= timer.rounds_us(contenders)
    reference = "encode" if scene.has_tower else "process"
    reference_us = samples[reference].value
    for name, sample in samples.items():
        judged = case.is_judged and name == "given" and scene.has_tower
        recorder.add(
            case.name,
            name,
            "done_us",
            "us",
            sample,
            bytes_moved=num_bytes.get(name),
            against=(reference, reference_us),
            target=GIVEN_PART if judged else None,
            limit=GIVEN_PART * reference_us if judged else None,
        )
    yield "a key of each source"
    one_by_one: dict[str, Callable[[], object]] = {
        source: partial(hash_each, items, 1, namespace) for source, items in sources.items()
    }
    for source, sample in timer.rounds_us(one_by_one).items():
        recorder.add(
            case.name,
            source,
            "key_us",
            "us",
            Sample(*(us / case.images for us in (sample.value, sample.p20, sample.p80))),
            bytes_moved=sum(map(size_of, sources[source])) // case.images,
            against=(reference, reference_us / case.images),
        )


def size_of(item: Any) -> int:
    """Return the bytes of a file, an array or a tensor."""
    return item.nbytes if hasattr(item, "nbytes") else len(item)


def make_cache(scene: Scene, device: torch.device) -> EmbeddingCache:
    """Make a cache that has space for all images of a case, in pages of one row."""
    size = sum(scene.num_rows) * scene.row_width * scene.dtype.itemsize
    return EmbeddingCache(scene.row_width, dtype=scene.dtype, device=device, device_bytes=size, page_rows=1)


def look_up(cache: EmbeddingCache, keys: list[bytes], num_rows: list[int]) -> int:
    """Look up all keys and release the leases; return the number of hits."""
    hits = 0
    for key, count in zip(keys, num_rows, strict=True):
        lease = cache.get(key, num_rows=count)
        if lease is not None:
            hits += 1
            lease.release()
    return hits


class KnownFiles:
    """Files with an alias in a `KeyAliases`, and with their rows in a cache."""

    def __init__(self, cache: EmbeddingCache, scene: Scene, keys: list[bytes], namespace: bytes) -> None:
        self._cache, self._files, self._namespace = cache, scene.files, namespace
        self._aliases = KeyAliases()
        for file, key, num_rows in zip(scene.files, keys, scene.num_rows, strict=True):
            self._aliases.add(content_key(file, namespace=namespace), key, num_rows)

    def find(self) -> int:
        """Hash each file, find the key of its image, and look it up; return the number of hits."""
        aliases = [self._aliases.get(content_key(file, namespace=self._namespace)) for file in self._files]
        known = [alias for alias in aliases if alias is not None]
        return look_up(self._cache, [alias.key for alias in known], [alias.num_rows for alias in known])
