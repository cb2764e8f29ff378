"""vitcache's model state in a worker with its connector, for a `StepScene`. vLLM must be importable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor
from vllm.config import ECTransferConfig
from vllm.distributed.ec_transfer import ec_transfer_state
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache

from vitcache.adapters.vllm import plugin
from vitcache.adapters.vllm.connector import OrdersMetadata, VitCacheConnector
from vitcache.adapters.vllm.model_state import VitCacheModelState
from vitcache.adapters.vllm.orders import ItemKey, SaveOrder, StepOrders
from vitcache.bench.engines.step_scene import REQUEST, ROWS_PER_ITEM, StepScene

PAGE_ROWS = 16


class VitcacheStep:
    """A worker whose device tier has the rows of all images of a scene. The connector is in a step."""

    def __init__(self, scene: StepScene, connector: VitCacheConnector, state: VitCacheModelState) -> None:
        self.model = state.model
        self._connector, self._state, self._batch = connector, state, scene.batch
        self._rows = state.encoder_cache.encoder_outputs
        self._number = 0
        self._save(scene)
        self.begin(StepOrders(self._next()))

    def __call__(self) -> Tensor:
        """Call `prepare_inputs_embeds`."""
        embeds: Tensor = self._state.prepare_inputs_embeds({}, self._batch, None)
        return embeds

    def whole(self) -> Tensor:
        """Call `prepare_inputs_embeds`, and around it the connector, as vLLM does in each step."""
        self.end()
        self.begin(StepOrders(self._next()))
        return self()

    def forget(self) -> None:
        """Let the next call be the first step of the request."""
        self._state.remove_request(REQUEST)

    def begin(self, orders: StepOrders) -> None:
        """Begin a step of the connector."""
        self._connector.bind_connector_metadata(OrdersMetadata(orders))
        self._connector.start_load_caches(self._rows)

    def end(self) -> None:
        """End the step of the connector."""
        self._connector.get_ec_connector_stats()
        self._connector.build_connector_worker_meta()
        self._connector.clear_connector_metadata()

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _save(self, scene: StepScene) -> None:
        """Let the worker store the rows of all images, as in the step that encodes them."""
        scene.fill(self._state.encoder_cache)
        rows = dict(self._rows)
        orders = StepOrders(self._next(), runs_encoder=True)
        for name in rows:
            orders.saves[name] = SaveOrder(ItemKey("", name), ROWS_PER_ITEM, 1, to_host=False)
        self.begin(orders)
        self._rows.update(rows)
        for name in rows:
            self._connector.save_caches(self._rows, name)
        self.end()


@contextmanager
def open_vitcache_step(scene: StepScene) -> Iterator[VitcacheStep]:
    """Start a worker with vitcache's connector and model state in this process, and stop it at the end."""
    plugin.register()
    row_bytes = scene.width * torch.float32.itemsize
    sizes = {
        "device_bytes": 2 * (scene.items + 1) * PAGE_ROWS * row_bytes,
        "host_bytes": 0,
        "page_rows": PAGE_ROWS,
        "row_width": scene.width,
    }
    transfer = ECTransferConfig(
        ec_connector=plugin.CONNECTOR, ec_role="ec_both", ec_connector_extra_config=sizes
    )
    config = SimpleNamespace(**vars(scene.config), ec_transfer_config=transfer, lora_config=None)
    ec_transfer_state.ensure_ec_transfer_initialized(config)
    try:
        connector = VitCacheConnector.of_worker()
        if connector is None:
            raise RuntimeError("the worker has no VitCacheConnector: another connector was started before")
        state = VitCacheModelState(config, scene.model(), EncoderCache(), torch.device("cpu"))
        connector.start_worker_services()
        yield VitcacheStep(scene, connector, state)
    finally:
        ec_transfer_state.ensure_ec_transfer_shutdown()
