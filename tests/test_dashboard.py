"""docs/grafana/vitcache.json: each metric and label of the dashboard is in a scrape, and vice versa."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import prometheus_client
import pytest
from caches import make_cache
from prometheus_client import CollectorRegistry, parser

from vitcache.adapters.vllm.counts import COUNTERS
from vitcache.metrics import CacheCollector
from vitcache.tiers import MemoryTier

BOARD = json.loads((Path(__file__).parents[1] / "docs" / "grafana" / "vitcache.json").read_text())
VARIABLES = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
NAME = r"(?:vllm:)?vitcache_\w+"
VLLM_LABELS = ["model_name", "engine"]  # vLLM gives them to each of its metrics


class PromMetrics:
    """The part of vLLM's `ECConnectorPromMetrics` that `VitCachePromMetrics` uses."""

    registry = CollectorRegistry()

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine: Any) -> None:
        self._counter_cls = partial(prometheus_client.Counter, registry=self.registry)


@pytest.fixture(scope="module")
def scrape() -> dict[str, set[str]]:
    """The names of the labels of each sample of a scrape, by the name of the sample."""
    module = "vllm.distributed.ec_transfer.ec_connector.metrics"
    parents = [module.rsplit(".", number)[0] for number in range(1, 5)]
    with pytest.MonkeyPatch.context() as patch:
        for name in (*parents, module):
            patch.setitem(sys.modules, name, ModuleType(name))
        for name in ("ECConnectorPromMetrics", "ECConnectorStats"):
            setattr(sys.modules[module], name, PromMetrics)
        patch.delitem(sys.modules, "vitcache.adapters.vllm.metrics", raising=False)
        from vitcache.adapters.vllm.metrics import VitCachePromMetrics

        VitCachePromMetrics(None, {}, VLLM_LABELS, {0: ["a model", "0"]})
        tier = MemoryTier(1 << 10)
        tier.worth = 0.5
        with make_cache(1, 1, tiers=[tier]) as cache:
            assert cache.flush()
            cache.encode_times.note(1, 4, 1.0)
            PromMetrics.registry.register(CacheCollector(cache))
            text = prometheus_client.generate_latest(PromMetrics.registry).decode()
        del sys.modules["vitcache.adapters.vllm.metrics"]
    samples = [each for family in parser.text_string_to_metric_families(text) for each in family.samples]
    return {each.name: set(each.labels) for each in samples if not each.name.endswith("_created")}


def expressions() -> list[tuple[str, str, str]]:
    """Title, expression and legend of each query."""
    return [
        (panel["title"], target["expr"], target["legendFormat"])
        for panel in PANELS
        for target in panel["targets"]
    ]


def test_every_metric_and_matcher_of_the_dashboard_is_in_a_scrape(scrape: dict[str, set[str]]) -> None:
    for title, expression, _ in expressions():
        found = re.findall(rf"({NAME})(?:{{([^}}]*)}})?", expression)
        assert found, title
        for name, matchers in found:
            assert name in scrape, title
            labels = {matcher.split("=~")[0].strip() for matcher in matchers.split(",")}
            assert labels <= scrape[name], f"{title}: {name} has no labels {labels - scrape[name]}"
            assert set(re.findall(r"\$(\w+)", matchers)) <= VARIABLES.keys()


def test_every_label_that_a_query_groups_by_is_of_its_metric(scrape: dict[str, set[str]]) -> None:
    grouped = 0
    for title, expression, legend in expressions():
        groups = re.findall(rf"sum by \(([\w, ]+)\) \((?:\w+\()?({NAME})", expression)
        assert len(groups) == expression.count(" by "), title
        labels = {label for group, _ in groups for label in group.split(", ")}
        assert all(set(group.split(", ")) <= scrape[name] for group, name in groups), title
        assert set(re.findall(r"{{(\w+)}}", legend)) == labels, title
        grouped += len(groups)
    assert grouped > len(VARIABLES)


def test_every_metric_of_a_scrape_is_on_the_dashboard(scrape: dict[str, set[str]]) -> None:
    shown = {name for _, expression, _ in expressions() for name in re.findall(NAME, expression)}
    assert shown == scrape.keys()
    assert {f"vllm:vitcache_{counter.family}_total" for counter in COUNTERS.values()} < shown


def test_counters_are_shown_as_rates_and_gauges_as_they_are(scrape: dict[str, set[str]]) -> None:
    for title, expression, _ in expressions():
        for before, name, after in re.findall(rf"(\w+)\(({NAME}){{[^}}]*}}(\[[^\]]*\])?", expression):
            assert (before in ("rate", "increase")) == bool(after) == name.endswith("_total"), title
        assert expression.count("(") == expression.count(")")


def test_variables_read_their_values_from_metrics_of_a_scrape(scrape: dict[str, set[str]]) -> None:
    queries = [variable["definition"] for variable in VARIABLES.values() if variable["type"] == "query"]
    for query in queries:
        name, label = re.fullmatch(rf"label_values\(({NAME}), (\w+)\)", query).groups()  # type: ignore[union-attr]
        assert label in scrape[name]
    assert len(queries) == len(VARIABLES) - 1


def test_panels_have_units_texts_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
    for first, second in combinations([panel["gridPos"] for panel in BOARD["panels"]], 2):
        apart = [
            first[at] + first[size] <= second[at] or second[at] + second[size] <= first[at]
            for at, size in (("x", "w"), ("y", "h"))
        ]
        assert any(apart)
