"""The store of vLLM's workers on a GPU: loads on their own stream, views that stay right, no waiting host."""

from __future__ import annotations

import pytest
import torch
from machine import Machine
from vllm_scene.requests import make_settings

from vitcache.adapters.vllm.orders import ItemKey, LoadOrder, SaveOrder, StepOrders, StepReport
from vitcache.adapters.vllm.store import Store

WIDTH = 1024
PAGE_ROWS = 16


class Scene:
    """A store of some items of equal size, and vLLM's encoder cache."""

    def __init__(self, gpu: Machine, *, device_items: int, waits_after_encoder: bool = False) -> None:
        self.gpu = gpu
        self.num_rows = gpu.size(880, 40)
        self.pages = -(-self.num_rows // PAGE_ROWS)
        sizes = {"page_rows": PAGE_ROWS, "row_width": WIDTH}
        settings = make_settings(device_items * self.pages, 8 * self.pages, **sizes)
        self.store = Store(
            settings,
            torch.device(gpu.device),
            waits_after_encoder=waits_after_encoder,
            merge_reason="model",
        )
        self.rows: dict[str, torch.Tensor] = {}
        self.step = 0
        for name in "ab":  # CUDA loads kernels at their first use, and that may wait for the device
            self.save(name)
            self.load(self.evict(name))
        self.load_events()
        for name in "ab":
            self.evict(name)
        gpu.synchronize()

    def load_events(self) -> None:
        self.gpu.slow(0)
        self.value("a") - self.value("a")

    def value(self, name: str) -> torch.Tensor:
        columns = torch.arange(WIDTH, device=self.gpu.device, dtype=torch.float32)
        return columns + torch.arange(self.num_rows, device=self.gpu.device)[:, None] + ord(name)

    def run(self, **fields: object) -> StepReport | None:
        self.step += 1
        self.store.begin(StepOrders(self.step, **fields), self.rows)  # type: ignore[arg-type]
        for name in list(fields.get("saves", ())):  # type: ignore[call-overload]
            batch = torch.cat([self.value(name), self.value(name)])
            self.rows[name] = batch[: self.num_rows]
            self.store.save(name)
            batch.fill_(float("nan"))
        return self.store.end()

    def save(self, *names: str, loads: tuple[str, ...] = ()) -> StepReport | None:
        saves = {name: SaveOrder(ItemKey("", name), self.num_rows, self.pages, False) for name in names}
        return self.run(saves=saves, loads=self.orders(loads), runs_encoder=True)

    def load(self, *names: str) -> StepReport | None:
        return self.run(loads=self.orders(names))

    def orders(self, names: tuple[str, ...]) -> dict[str, LoadOrder]:
        return {name: LoadOrder(ItemKey("", name), self.num_rows) for name in names}

    def evict(self, name: str) -> str:
        del self.rows[name]
        self.run(releases=[name], demotions={ItemKey("", name): None})
        return name

    def differences(self, *names: str) -> torch.Tensor:
        """The number of wrong values, read on the current stream."""
        return sum((self.rows[name] != self.value(name)).sum() for name in names)  # type: ignore[return-value]


@pytest.mark.parametrize("waits_after_encoder", [False, True])
def test_store_saves_evicts_and_loads_the_right_rows_behind_a_busy_stream(
    gpu: Machine, waits_after_encoder: bool
) -> None:
    scene = Scene(gpu, device_items=2, waits_after_encoder=waits_after_encoder)
    wrong = []
    for _ in range(gpu.size(20, 3)):
        gpu.slow(1)
        scene.save("c", loads=("a",))
        wrong.append(scene.differences("a", "c"))
        scene.evict("a"), scene.evict("c")
        gpu.slow(1)
        scene.load("c", "b")
        wrong.append(scene.differences("c", "b"))
        scene.evict("b"), scene.evict("c")
    assert not any(map(int, wrong))
    scene.store.cache.check_integrity()


def test_store_compacts_pages_and_moves_the_views_behind_a_busy_stream(gpu: Machine) -> None:
    scene = Scene(gpu, device_items=4)
    scene.save("c", "d", "e", "f")
    scene.evict("c"), scene.evict("e")
    gpu.slow(2)
    pages, scene.pages, rows, scene.num_rows = (
        scene.pages,
        2 * scene.pages,
        scene.num_rows,
        2 * scene.num_rows,
    )
    report = scene.save("g")
    wrong = scene.differences("g")
    scene.pages, scene.num_rows = pages, rows
    assert report is not None
    assert report.counts["compactions"] == 1
    assert int(wrong) == 0
    assert int(scene.differences("d", "f")) == 0


def test_store_lets_the_host_run_ahead_of_the_device(gpu: Machine) -> None:
    scene = Scene(gpu, device_items=2)
    gpu.slow(200)
    with gpu.no_host_sync():
        scene.save("c", loads=("a",))
        scene.evict("a")
        scene.load("b")
    assert gpu.is_behind(gpu.current_stream())
    gpu.synchronize()


def test_loads_behind_a_busy_stream_are_counted_as_hidden(gpu: Machine) -> None:
    scene = Scene(gpu, device_items=2)
    scene.run()
    gpu.slow(20)
    scene.load("a", "b")
    gpu.synchronize()
    report = scene.run()
    counts = report.counts if report is not None else {}
    if not gpu.dry:  # the copies of the CPU are complete in the call, and are counted there
        assert counts == {"loads_hidden": 2.0}
