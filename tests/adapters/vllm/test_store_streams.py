"""The order of a worker's work on its streams: of the encoder, of loads, and of copies to the host tier."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from stream_model import StreamModel, make_pool_type
from vllm_scene.encoder_cache import EncoderCacheModel
from vllm_scene.engine import Engine, run_traffic
from vllm_scene.requests import make_settings
from vllm_scene.store_worker import StoreWorker

from vitcache.adapters.vllm.device_rows import DeviceRows
from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.settings import Settings
from vitcache.adapters.vllm.store import Store


class StreamWorker(StoreWorker):
    """A rank whose loads run on the stream "other". The rows that a step needs are read on "main"."""

    def __init__(self, model: StreamModel, settings: Settings, *, waits_after_encoder: bool) -> None:
        self.model = model
        with (
            mock.patch("vitcache.cache.construction.make_timeline", return_value=model),
            mock.patch("vitcache.cache.construction.PagePool", make_pool_type(model)),
        ):
            super().__init__(settings, waits_after_encoder=waits_after_encoder)
        model.cache = self.store.cache
        self.store._on_load_stream = self._on_load_stream  # type: ignore[method-assign]

    def shows(self, identifier: str, expected: tuple[str, int, int]) -> bool:
        if identifier in self.store.on_device.shown:
            for page in self.store.on_device.shown[identifier].lease.pages:
                self.model.access(("device", page), write=False)
        return super().shows(identifier, expected)

    def _on_load_stream(self) -> contextlib.AbstractContextManager[None]:
        return self.model.on("other")


def run(model: StreamModel, *, is_v1: bool, lag: int = 1, steps: int = 250) -> StreamWorker:
    inventory = Inventory(make_settings(10, 30))
    worker = StreamWorker(model, inventory.settings, waits_after_encoder=is_v1)
    engine = Engine(inventory, EncoderCacheModel(inventory), [worker], random.Random(lag), lag, not is_v1)
    run_traffic(engine, steps)
    return worker


@pytest.mark.parametrize("is_v1", [False, True], ids=["V2", "V1"])
@pytest.mark.parametrize("lag", range(3))
def test_random_traffic_reads_and_writes_pages_in_order(is_v1: bool, lag: int) -> None:
    model = StreamModel()
    worker = run(model, is_v1=is_v1, lag=lag)
    assert model.races == []
    assert model.inconsistent_calls == []
    assert worker.num_loads > 20
    assert worker.counts["compactions"] > 5
    assert model.num_synchronizations == 1  # when the memory was allocated


def await_no_load(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "wait_for_loads", lambda store: store._unawaited.clear())


def await_loads_after_the_step(patch: pytest.MonkeyPatch) -> None:
    wait, end = Store.wait_for_loads, Store.end
    patch.setattr(Store, "wait_for_loads", lambda store: None)

    def wait_and_end(store: Store) -> Any:
        wait(store)
        return end(store)

    patch.setattr(Store, "end", wait_and_end)


def forget_that_saved_rows_are_read(patch: pytest.MonkeyPatch) -> None:
    use = DeviceRows.use
    patch.setattr(DeviceRows, "use", lambda rows, names: None if len(names) == 1 else use(rows, names))


def forget_that_moved_rows_are_read(patch: pytest.MonkeyPatch) -> None:
    compact = DeviceRows._compact

    def compact_only(device_rows: DeviceRows) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(DeviceRows, "use", lambda *_: None)
            compact(device_rows)

    patch.setattr(DeviceRows, "_compact", compact_only)


@pytest.mark.parametrize("is_v1", [False, True], ids=["V2", "V1"])
@pytest.mark.parametrize(
    "plant",
    [
        await_no_load,
        await_loads_after_the_step,
        forget_that_saved_rows_are_read,
        forget_that_moved_rows_are_read,
    ],
)
def test_planted_fault_of_the_store_is_reported_as_a_race(
    plant: Callable[[pytest.MonkeyPatch], None], is_v1: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    model = StreamModel()
    run(model, is_v1=is_v1, steps=600)
    assert model.races
