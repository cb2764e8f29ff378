"""The order of a worker's work on its streams: of the encoder, of loads, and of copies to the host tier."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
from stream_model import StreamModel, make_pool_type
from vllm_scene.encoder_cache import EncoderCacheModel
from vllm_scene.engine import Engine, Window, run_traffic
from vllm_scene.placed_worker import PlacedWorker
from vllm_scene.requests import make_settings
from vllm_scene.store_worker import StoreWorker

from vitcache.adapters.vllm.device_rows import DeviceRows
from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.settings import Settings
from vitcache.adapters.vllm.store import Store
from vitcache.pages.lease import Lease
from vitcache.placement import dispatch

KINDS = ("V1", "V2", "placed")


class OnStreams(StoreWorker):
    """A rank whose loads run on the stream "other". The rows that a step needs are read on "main"."""

    def __init__(self, model: StreamModel, settings: Settings, **options: Any) -> None:
        self.model = model
        with (
            mock.patch("vitcache.cache.construction.make_timeline", return_value=model),
            mock.patch("vitcache.cache.construction.PagePool", make_pool_type(model)),
        ):
            super().__init__(settings, **options)
        model.cache = self.store.cache
        self.store._on_load_stream = self._on_load_stream  # type: ignore[method-assign]

    def shows(self, identifier: str, expected: tuple[str, int, int]) -> bool:
        if identifier in self.store.on_device.shown:
            for page in self.store.on_device.shown[identifier].lease.pages:
                self.model.access(("device", page), write=False)
        return super().shows(identifier, expected)

    def _on_load_stream(self) -> contextlib.AbstractContextManager[None]:
        return self.model.on("other")


class StreamPlacedWorker(OnStreams, PlacedWorker):
    """A rank with a placement, whose launch runs on "main"."""

    def place(self, windows: Sequence[Window]) -> None:
        needed = {
            feature.identifier
            for request, start, stop, _ in windows
            for feature in request.mm_features
            if feature.offset < stop and feature.end > start
        }

        def launch(*arguments: Any, **options: Any) -> None:
            for identifier in needed:
                self._read(identifier)
            embed(*arguments, **options)

        embed = dispatch.embed
        with mock.patch.object(dispatch, "embed", launch):
            super().place(windows)

    def _read(self, identifier: str) -> None:
        """The accesses of the launch to one item. Its writes to pages are those of `Reservation.write`."""
        pending = self.store.pending.get(identifier)
        if pending is not None and isinstance(pending.source, Lease):
            pending.source.use()
            for page in pending.source.pages:
                self.model.access(("host", page), write=False)
        elif identifier in self.store.on_device.shown:
            for page in self.store.on_device.shown[identifier].lease.pages:
                self.model.access(("device", page), write=False)


def run(model: StreamModel, kind: str, *, lag: int = 1, steps: int = 250) -> OnStreams:
    inventory = Inventory(make_settings(10, 30))
    worker: OnStreams
    if kind == "placed":
        worker = StreamPlacedWorker(model, inventory.settings)
    else:
        worker = OnStreams(model, inventory.settings, waits_after_encoder=kind == "V1")
    engine = Engine(inventory, EncoderCacheModel(inventory), [worker], random.Random(lag), lag, kind != "V1")
    run_traffic(engine, steps)
    return worker


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lag", range(3))
def test_random_traffic_reads_and_writes_pages_in_order(kind: str, lag: int) -> None:
    model = StreamModel()
    worker = run(model, kind, lag=lag)
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


@pytest.mark.parametrize("kind", KINDS)
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
    plant: Callable[[pytest.MonkeyPatch], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    model = StreamModel()
    run(model, kind, steps=600)
    assert model.races
