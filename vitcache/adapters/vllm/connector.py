"""`VitCacheConnector`: vitcache as an encoder cache (EC) connector of vLLM."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.ec_transfer.ec_connector.base import (
    ECConnectorBase,
    ECConnectorMetadata,
    ECConnectorRole,
    ECConnectorWorkerMetadata,
)
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorStats

from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.vllm.counts import MERGE_REASONS
from vitcache.adapters.vllm.embedding_inputs import EmbeddingGate
from vitcache.adapters.vllm.engine_inventory import enter_inventory
from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.metrics import VitCachePromMetrics
from vitcache.adapters.vllm.orders import StepOrders, StepReport
from vitcache.adapters.vllm.plugin import check_version, logger
from vitcache.adapters.vllm.settings import Settings, accepts_embeds
from vitcache.adapters.vllm.stats import VitCacheStats
from vitcache.adapters.vllm.store import Store
from vitcache.adapters.vllm.tier_fetches import TierFetches
from vitcache.adapters.vllm.worker_tiers import WorkerTiers
from vitcache.pipeline.feature_mover import RING_BYTES
from vitcache.ring.pinned_ring import PinnedRing


@dataclass
class OrdersMetadata(ECConnectorMetadata):
    """Carries the orders of one step to the workers.

    None: the step is not executed, or vitcache is disabled.
    """

    orders: StepOrders | None


@dataclass
class ReportMetadata(ECConnectorWorkerMetadata):
    """Carries the report of one step to the scheduler."""

    report: StepReport

    def aggregate(self, other: ECConnectorWorkerMetadata) -> ReportMetadata:
        """Return the report of this and another rank."""
        if not isinstance(other, ReportMetadata):
            raise TypeError(f"expected ReportMetadata of another rank, got {type(other).__name__}")
        return ReportMetadata(self.report.merge(other.report))


class VitCacheConnector(ECConnectorBase):
    """Keeps encoded rows in pages on the GPU and in pinned host memory, so that an image is encoded once.

    Name it in ``--ec-transfer-config``, together with `VitCacheManager`; see docs/vllm.md.

    Parameters
    ----------
    vllm_config
        The engine's config.
    role
        The scheduler or a worker. vLLM makes one connector for each.

    Raises
    ------
    RuntimeError
        If this version of vLLM was not tested.
    ValueError, TypeError
        If an option is wrong: `vitcache.adapters.vllm.settings.Settings`.

    Notes
    -----
    vLLM calls each object from one thread. With VITCACHE_DISABLE set when the engine starts, the connector
    stores nothing and finds nothing.
    """

    def __init__(self, vllm_config: Any, role: ECConnectorRole) -> None:
        super().__init__(vllm_config, role)
        self._inventory: Inventory | None = None
        self._store: Store | None = None
        self._settings: Settings | None = None  # None: VITCACHE_DISABLE is set
        self._has_model_state = False
        self._merge_reason: str | None = None
        self._ring: PinnedRing | None = None
        if is_disabled():  # also with wrong options
            options = vllm_config.ec_transfer_config.ec_connector_extra_config
            self._gate = EmbeddingGate(options.get("accept_embeds") is True)
            logger.warning("VITCACHE_DISABLE is set: VitCacheConnector keeps no rows")
            return
        check_version()
        self._gate = EmbeddingGate(accepts_embeds(vllm_config))
        self._settings = Settings.from_config(vllm_config)
        if role == ECConnectorRole.SCHEDULER:
            policy = getattr(getattr(vllm_config, "scheduler_config", None), "policy", None)
            self._inventory = Inventory(self._settings, shares_saves=policy != "priority")
            self._add_tiers(self._inventory, self._settings)
            enter_inventory(vllm_config, self._inventory)

    # Worker

    @classmethod
    def of_worker(cls) -> VitCacheConnector | None:
        """Return the connector of the worker in this process. None: it has none, or that of another class."""
        from vllm.distributed.ec_transfer import get_ec_transfer, has_ec_transfer

        connector = get_ec_transfer() if has_ec_transfer() else None
        return connector if isinstance(connector, cls) else None

    def may_place(self, model: Any) -> bool:
        """Whether a model may have a `VitCacheModelState`.

        The options must allow it, and vLLM's own choice must be `DefaultModelState`: the states of models
        with recurrent layers, for example, do more.
        """
        from vllm.v1.worker.gpu.model_states import resolve_model_state_cls
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        if self._settings is None or not self._settings.place_rows:
            return False
        plain = SimpleNamespace(modules=model.modules)  # without the attribute that vLLM looks for first
        return resolve_model_state_cls(self._vllm_config, plain) is DefaultModelState

    def expect_model_state(self, merge_reason: str | None) -> None:
        """Note that the worker has a `VitCacheModelState`. It calls this before `start_worker_services`.

        Parameters
        ----------
        merge_reason
            Why vLLM's merge must write the rows of each step. None: the model state places them.
        """
        self._has_model_state, self._merge_reason = True, merge_reason

    def make_ring(self, device: torch.device) -> PinnedRing | None:
        """Return a ring for features, which `shutdown` closes. None: the encoder is on the CPU."""
        if device.type == "cuda":
            if self._ring is not None:  # of an earlier model state
                self._ring.close()
            self._ring = PinnedRing(RING_BYTES, backend="cuda", device=device)
        return self._ring

    @property
    def store(self) -> Store | None:
        """The worker's store. None outside of steps, and in a worker without an encoder."""
        return self._store if self._step_orders() is not None else None

    def start_worker_services(self) -> None:
        """Allocate both tiers. vLLM calls it before it measures the free memory."""
        from vllm.platforms import current_platform

        if self._settings is None or self._store is not None or not self._runs_encoder():
            return
        device = torch.device(current_platform.device_type)
        if device.type == "cuda":
            device = torch.device("cuda", torch.cuda.current_device())
        uses_v2 = bool(getattr(self._vllm_config, "use_v2_model_runner", True))
        if not self._has_model_state:
            self._merge_reason = self._find_merge_reason(uses_v2)
        self._store = Store(
            self._settings,
            device,
            waits_after_encoder=self._has_model_state or not uses_v2,
            merge_reason=self._merge_reason,
        )
        tiers = self._settings.tiers
        if tiers is not None:
            level = logging.WARNING if tiers.weights_name is None else logging.INFO
            mib = self._settings.fetch_pages * self._settings.page_bytes >> 20
            logger.log(level, "%s; %d MiB of pinned memory for fetches", tiers.line, mib)
        if self._merge_reason is not None:
            level = logging.INFO if self._merge_reason == "option" else logging.WARNING
            reason = MERGE_REASONS[self._merge_reason]
            logger.log(level, "vLLM's merge writes the rows of items: %s (%s)", reason, self._merge_reason)

    def _find_merge_reason(self, uses_v2: bool) -> str:
        """Why no model state of vitcache was made in this worker."""
        if not uses_v2:
            return "model_runner"
        return "model" if self._settings is None or self._settings.place_rows else "option"

    def _runs_encoder(self) -> bool:
        """Whether this worker is of the first pipeline stage, which alone runs the encoder."""
        from vllm.distributed.parallel_state import get_pp_group

        parallel_config = getattr(self._vllm_config, "parallel_config", None)
        num_stages = getattr(parallel_config, "pipeline_parallel_size", 1)
        return num_stages == 1 or bool(get_pp_group().is_first_rank)

    def start_load_caches(self, encoder_cache: dict[str, Tensor], **kwargs: Any) -> None:
        """Execute the orders of this step, up to its loads."""
        orders = self._step_orders()
        if orders is not None and self._store is not None:
            self._store.begin(orders, encoder_cache)

    def save_caches(self, encoder_cache: dict[str, Tensor], mm_hash: str, **kwargs: Any) -> None:
        """Store the fresh rows of one item in device pages."""
        if self._store is not None and self._step_orders() is not None:
            self._store.save(mm_hash)

    def build_connector_worker_meta(self) -> ReportMetadata | None:
        """Return the report of this step."""
        if self._store is None or self._step_orders() is None:
            return None
        report = self._store.end()
        if report is None:
            return None
        if getattr(getattr(self._vllm_config, "parallel_config", None), "rank", 0):
            report.counts, report.encoded_rows = {}, 0  # each rank has the same entries: the first one counts
        return ReportMetadata(report)

    def _step_orders(self) -> StepOrders | None:
        metadata = self._connector_metadata  # None while vLLM profiles
        return metadata.orders if isinstance(metadata, OrdersMetadata) else None

    # Scheduler

    @classmethod
    def _add_tiers(cls, inventory: Inventory, settings: Settings) -> None:
        """Let the inventory fetch from the lower tiers of the worker, which is in this process."""
        tiers = settings.tiers
        if tiers is None:
            return
        inventory.fetches = TierFetches(
            WorkerTiers(cls._find_store, settings.page_bytes),
            settings.fetch_pages,
            tiers.timeout_s,
            inventory.counts,
            num_tiers=tiers.num_tiers,
        )

    @classmethod
    def _find_store(cls) -> Store | None:
        connector = cls.of_worker()
        return None if connector is None else connector._store

    def ensure_cache_available(self, request: Any, num_computed_tokens: int) -> bool:
        """Return False if the request is refused, or must wait one step for the report of a save."""
        if not self._gate.admits(request):
            return False
        return self._inventory is None or self._inventory.admit(request, num_computed_tokens)

    def has_cache_item(self, identifier: str) -> bool:
        """Whether the workers have the rows of an item of the current request."""
        return self._inventory is not None and self._inventory.has(identifier)

    def update_state_after_alloc(self, request: Any, index: int) -> None:
        """Order the load or the save of an item."""
        if self._inventory is not None:
            self._inventory.allocate(request, index)

    def build_connector_meta(self, scheduler_output: Any) -> OrdersMetadata:
        """Return the orders of this step."""
        if self._inventory is None:
            return OrdersMetadata(None)
        is_executed = getattr(scheduler_output, "total_num_scheduled_tokens", 1) > 0
        orders = self._inventory.close_step(scheduler_output.free_encoder_mm_hashes, is_executed)
        if orders is not None:
            orders.runs_encoder = bool(getattr(scheduler_output, "scheduled_encoder_inputs", True))
        return OrdersMetadata(orders)

    def update_connector_output(self, connector_output: Any) -> None:
        """Take in the report of a step."""
        metadata = connector_output.ec_connector_worker_meta
        if self._inventory is not None and isinstance(metadata, ReportMetadata):
            self._inventory.report(metadata.report)

    def take_unavailable_requests(self) -> set[str]:
        """Return the requests that are refused, or that fail because a worker lost their rows."""
        refused = self._gate.take_refused()
        return refused if self._inventory is None else refused | self._inventory.take_failed()

    def request_finished(self, request: Any) -> tuple[bool, dict[str, Any] | None]:
        """Forget a finished request."""
        self._gate.finish(request)
        if self._inventory is not None:
            self._inventory.finish(request)
        return False, None

    # Both

    def get_ec_connector_stats(self) -> VitCacheStats | None:
        """Return the counters since the last call, from the scheduler. They contain those of the workers."""
        if self._inventory is None:
            return None
        stats = VitCacheStats(data=self._inventory.take_counts())
        return None if stats.is_empty() else stats

    def shutdown(self) -> None:
        """Free the worker's memory."""
        if self._store is not None:
            self._store.close()
            self._store = None
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    @classmethod
    def build_ec_connector_stats(cls, data: dict[str, Any] | None = None) -> ECConnectorStats | None:
        """Return counters that were sent to another process."""
        return VitCacheStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: Mapping[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> VitCachePromMetrics:
        """Return the Prometheus metrics of the counters."""
        return VitCachePromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
