"""Features of vLLM's items on a GPU: copies beside a busy encoder, without a waiting host. Needs no vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from machine import Machine
from torch import Tensor
from vllm_scene.fields import Elem, MultiModalBatchedField, install, make_item

from vitcache import PinnedRing
from vitcache.adapters.vllm.feature_batches import FeatureBatches

WIDTH = 4096
ITEMS = 6
MOVED = ("pixel_values", "tiles")


class Scene:
    """Images whose features fit into the ring together, and an encoder that reads them late."""

    def __init__(self, gpu: Machine, ring: PinnedRing) -> None:
        self.gpu = gpu
        self.rows = gpu.size(512, 8)
        self.ring = ring
        self.items: list[tuple[str, Any]] = [
            ("image", make_item(self.rows, WIDTH, seed)) for seed in range(ITEMS)
        ]
        for number, (_, item) in enumerate(self.items):
            # Of unequal shapes, so that each is a tensor of its own on the device.
            item["tiles"] = Elem(torch.full((number + 1, WIDTH * 8), float(number)), MultiModalBatchedField())
        self.batches = FeatureBatches(ring.device, ring, max_rows=2 * self.rows)
        self.slow_ms = 0.0
        self.sums: list[Tensor] = []

    def encode(self, modality: str, num_items: int, arguments: dict[str, Any]) -> list[Tensor]:
        pixels, tiles = (arguments[name] for name in MOVED)
        assert {tensor.device for tensor in [pixels, *tiles]} == {self.ring.device}
        assert arguments["image_grid_thw"].device.type == "cpu"
        self.gpu.slow(self.slow_ms)
        self.sums += [part.double().sum() for part in tiles]
        return list(pixels.clone().split(self.rows))

    def steps(self) -> Iterator[tuple[list[int], Sequence[Tensor]]]:
        return self.batches.run(self.items, [self.rows] * ITEMS, self.encode)

    def run(self) -> list[Tensor]:
        """Return the rows of all items."""
        return [rows for _, outputs in self.steps() for rows in outputs]

    def check(self, found: list[Tensor]) -> None:
        """Compare the rows, and the sums of the tiles, with the items; forget the sums."""
        for (_, item), rows in zip(self.items, found, strict=True):
            assert torch.equal(rows.cpu(), item["pixel_values"].data)
        sums, self.sums = [float(total) for total in self.sums], []
        assert sums == [float(item["tiles"].data.double().sum()) for _, item in self.items]


@pytest.fixture
def scene(gpu: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    install(monkeypatch)
    size = gpu.size(128 << 20, 8 << 20)
    device = None if gpu.dry else torch.device("cuda", 0)
    with PinnedRing(size, backend="host" if gpu.dry else "cuda", device=device) as ring:
        scene = Scene(gpu, ring)
        # Loads the kernels; then torch's allocator keeps the memory of a step with a slow encoder.
        for scene.slow_ms in (0, 20):
            scene.check(scene.run())
            gpu.synchronize()
        yield scene


def test_features_behind_a_busy_encoder_do_not_block_the_host(gpu: Machine, scene: Scene) -> None:
    scene.slow_ms = 100
    with gpu.no_host_sync():
        gpu.slow(100)
        found = scene.run()
        assert gpu.is_behind(gpu.current_stream())
    gpu.synchronize()
    scene.check(found)


def test_features_are_copied_while_the_encoder_before_them_is_busy(gpu: Machine, scene: Scene) -> None:
    """The ring's stream has copied two micro-batches before the first encode ends."""
    copies, steps = scene.ring.stats().copies, scene.steps()
    scene.slow_ms = 500
    found = list(next(steps)[1])
    while scene.ring.stats().num_slots:
        pass
    assert gpu.is_behind(gpu.current_stream())
    assert scene.ring.stats().copies - copies == 2 * 2 * len(MOVED)
    scene.slow_ms = 0
    found += [rows for _, outputs in steps for rows in outputs]
    gpu.synchronize()
    scene.check(found)


def test_steps_with_a_slow_encoder_read_the_right_features(gpu: Machine, scene: Scene) -> None:
    """The copies of a later micro-batch do not write to memory that the encoder has still to read."""
    scene.slow_ms = 5
    for _ in range(gpu.size(10, 2)):
        found = scene.run()
        gpu.synchronize()
        scene.check(found)


def test_step_after_a_failed_encode_reads_the_right_features(gpu: Machine, scene: Scene) -> None:
    def fail(*arguments: object) -> list[Tensor]:
        gpu.slow(5)
        raise ArithmeticError("of the encoder")

    for _ in range(3):
        with pytest.raises(ArithmeticError, match="of the encoder"):
            next(scene.batches.run(scene.items, [scene.rows] * ITEMS, fail))
        found = scene.run()
        gpu.synchronize()
        scene.check(found)
    scene.ring.check_integrity()
