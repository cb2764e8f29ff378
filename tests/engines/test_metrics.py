"""The counters in the released vLLM: log line, Prometheus metrics, and the bytes between processes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from prometheus_client import REGISTRY, generate_latest
from vllm.config import ECTransferConfig
from vllm.distributed.ec_transfer.ec_connector.factory import ECConnectorFactory
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorLogging, ECConnectorProm
from vllm.distributed.ec_transfer.ec_connector.utils import ECOutputAggregator
from vllm.v1.metrics.prometheus import unregister_vllm_metrics
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import ECConnectorOutput, ModelRunnerOutput
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from vitcache.adapters.vllm.counts import COUNTERS
from vitcache.adapters.vllm.metrics import VitCachePromMetrics
from vitcache.adapters.vllm.stats import VitCacheStats

NAME = "ConnectorOfTheTest"
REPORT = {
    "hits_device": 3.0,
    "hits_host": 1.0,
    "saved_seconds_host": 0.0125,
    "loads_hidden": 1.0,
    "encodes": 4.0,
}


class Connector:
    """The two class methods that vLLM's loggers call."""

    @classmethod
    def build_ec_connector_stats(cls, data: dict[str, Any] | None = None) -> VitCacheStats:
        return VitCacheStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *arguments: Any) -> VitCachePromMetrics:
        return VitCachePromMetrics(*arguments)


@pytest.fixture(autouse=True)
def transfer(monkeypatch: pytest.MonkeyPatch) -> Iterator[ECTransferConfig]:
    monkeypatch.setitem(ECConnectorFactory._registry, NAME, lambda: Connector)
    unregister_vllm_metrics()
    yield ECTransferConfig(ec_connector=NAME, ec_role="ec_both")
    unregister_vllm_metrics()


def make_prom(transfer: ECTransferConfig, engines: int = 1) -> ECConnectorProm:
    labels: dict[int, list[object]] = {index: ["a model", str(index)] for index in range(engines)}
    return ECConnectorProm(SimpleNamespace(ec_transfer_config=transfer), ["model_name", "engine"], labels)


def sample(name: str, engine: str = "0", **labels: str) -> float | None:
    return REGISTRY.get_sample_value(
        f"vllm:vitcache_{name}_total", {"model_name": "a model", "engine": engine, **labels}
    )


def test_log_line_sums_the_reports_of_an_interval(transfer: ECTransferConfig) -> None:
    lines: list[str] = []
    log = ECConnectorLogging(transfer)
    log.observe(REPORT)
    log.observe({"hits_device": 1.0, "load_bytes": float(1 << 29), "refusals": 2.0})
    log.log(lambda text, *values: lines.append(text % values))
    log.log(lambda text, *values: lines.append(text % values))  # a new interval without reports
    [line] = lines
    assert line.startswith("EC Transfer metrics: Hit rate (%)=55.6, Device hits=4, Host hits=1, Encodes=4,")
    assert "Saved ms=12.5" in line
    assert "Loaded GiB=0.5" in line
    assert line.endswith("Refusals=2")


def test_two_loggers_of_one_report_do_not_share_its_dict(transfer: ECTransferConfig) -> None:
    report, logs = dict(REPORT), [ECConnectorLogging(transfer), ECConnectorLogging(transfer)]
    for _ in range(3):
        for log in logs:
            log.observe(report)
    assert report == REPORT
    for log in logs:
        assert log.transfer_stats_accumulator.data["hits_device"] == 9.0


def test_reduce_of_no_items_is_zero_and_names_no_problem() -> None:
    line = VitCacheStats().reduce()
    assert set(line.values()) == {0.0}
    assert not {"Refusals", "Losses", "Deferrals", "Resets"} & line.keys()


def test_every_series_exists_before_the_first_report(transfer: ECTransferConfig) -> None:
    make_prom(transfer, engines=2)
    for counter in COUNTERS.values():
        for engine in "01":
            assert sample(counter.family, engine, **dict(counter.labels)) == 0.0, counter.family


def test_observe_adds_the_reports_of_each_engine_to_its_series(transfer: ECTransferConfig) -> None:
    prom = make_prom(transfer, engines=2)
    prom.observe(REPORT)
    prom.observe(REPORT, 1)
    prom.observe({"hits_device": 2.0}, 1)
    assert [sample("hits", engine, tier="device") for engine in "01"] == [3.0, 5.0]
    assert sample("saved_seconds", tier="host") == 0.0125
    assert sample("loads", overlap="hidden") == 1.0
    assert sample("loads", overlap="exposed") == 0.0
    text = generate_latest(REGISTRY).decode()
    assert 'vllm:vitcache_hits_total{engine="1",model_name="a model",tier="device"} 5.0' in text


def test_second_set_of_metrics_in_a_process_replaces_the_first(transfer: ECTransferConfig) -> None:
    make_prom(transfer).observe(REPORT)
    unregister_vllm_metrics()  # as each PrometheusStatLogger does
    make_prom(transfer)
    assert sample("encodes") == 0.0


def test_observe_refuses_an_engine_and_a_counter_without_series(transfer: ECTransferConfig) -> None:
    prom = make_prom(transfer)
    with pytest.raises(KeyError):
        prom.observe(REPORT, 1)
    with pytest.raises(KeyError):
        prom.observe({"hit": 1.0})


def test_metrics_of_several_processes_are_added(tmp_path: Any) -> None:
    """vLLM's multiprocess mode: each API server writes files, and `/metrics` adds them."""
    code = (
        "from types import SimpleNamespace as Namespace\n"
        "from prometheus_client import Counter, Gauge, Histogram\n"
        "from vitcache.adapters.vllm.metrics import VitCachePromMetrics\n"
        "types = {kind: kind for kind in (Counter, Gauge, Histogram)}\n"
        "config = Namespace(ec_transfer_config=None)\n"
        "metrics = VitCachePromMetrics(config, types, ['model_name', 'engine'], {0: ['m', '0']})\n"
        "metrics.observe({'hits_host': 2.0})\n"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    read = (
        "from prometheus_client import generate_latest\n"
        "from vllm.v1.metrics.prometheus import get_prometheus_registry\n"
        "print(generate_latest(get_prometheus_registry()).decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", read], env=environment, check=True, capture_output=True, text=True
    )
    assert 'vllm:vitcache_hits_total{engine="0",model_name="m",tier="host"} 4.0' in done.stdout


def test_stats_of_all_ranks_are_added_by_the_aggregator() -> None:
    outputs = []
    for _ in range(2):
        output = ModelRunnerOutput(req_ids=[], req_id_to_index={})
        output.ec_connector_output = ECConnectorOutput(ec_connector_stats=VitCacheStats(data=dict(REPORT)))
        outputs.append(pickle.loads(pickle.dumps(output)))
    aggregated = ECOutputAggregator().aggregate(outputs)
    assert aggregated.ec_connector_output.ec_connector_stats.data["hits_device"] == 6.0


def test_stats_travel_to_the_front_end_as_msgpack() -> None:
    sent = SchedulerStats(ec_connector_stats=VitCacheStats(data=dict(REPORT)).data)
    received = MsgpackDecoder(SchedulerStats).decode(MsgpackEncoder().encode(sent))
    assert received.ec_connector_stats == REPORT


def test_stats_refuse_a_name_that_is_not_a_counter() -> None:
    with pytest.raises(KeyError, match="'hit' is not a counter"):
        VitCacheStats(data={"hit": 1.0})


def test_reset_empties_the_stats() -> None:
    stats = VitCacheStats(data=dict(REPORT))
    assert not stats.is_empty()
    stats.reset()
    assert stats.is_empty()
    assert VitCacheStats(data={"hits_host": 0.0}).is_empty()
