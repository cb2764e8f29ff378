"""`VitCachePromMetrics`: the counters as Prometheus metrics on vLLM's page `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorPromMetrics

from vitcache.adapters.vllm.counts import COUNTERS

PREFIX = "vllm:vitcache_"  # vLLM unregisters metrics that begin with "vllm:" before it registers them again


class VitCachePromMetrics(ECConnectorPromMetrics):
    """One Prometheus counter per family of `COUNTERS`, with vLLM's labels and the labels of the family.

    All series exist, with the value 0, before the first request. Parameters are those of vLLM's
    `ECConnectorPromMetrics`.
    """

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Mapping[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        families: dict[str, Any] = {}
        self._series: dict[int, dict[str, Any]] = {engine: {} for engine in per_engine_labelvalues}
        for name, counter in COUNTERS.items():
            labels = dict(counter.labels)
            if counter.family not in families:
                families[counter.family] = self._counter_cls(
                    name=PREFIX + counter.family,
                    documentation=counter.text,
                    labelnames=[*labelnames, *labels],
                )
            for engine, values in per_engine_labelvalues.items():
                self._series[engine][name] = families[counter.family].labels(*values, *labels.values())

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add one report of the engine `engine_idx`.

        Raises
        ------
        KeyError
            If vLLM did not name the engine at start-up, or a name is not in `COUNTERS`.
        """
        series = self._series[engine_idx]
        for name, value in transfer_stats_data.items():
            series[name].inc(value)
