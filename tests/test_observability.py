"""docs/observability.md: its metrics, ranges, loggers and environment variables are those of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitcache import tracing
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.tiers import MemoryTier

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/observability.md").read_text()
LEVELS = {"exception": "ERROR"}
MODULES = sorted(
    path
    for folder in ("vitcache", "bench")
    for path in (ROOT / folder).rglob("*.py")
    if "testing" not in path.parts
)


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its first two lines."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def trees() -> Iterator[tuple[Path, ast.AST]]:
    for path in MODULES:
        yield path, ast.parse(path.read_text())


def test_table_of_metrics_is_that_of_a_scrape() -> None:
    pytest.importorskip("prometheus_client")
    from vitcache.metrics import CacheCollector

    tier = MemoryTier("1MiB")
    tier.worth = 0.5
    options = {"device_bytes": "1KiB", "host_bytes": "1KiB", "tiers": [tier]}
    with EmbeddingCache(4, device="cpu", **options) as cache:
        assert cache.flush()
        cache.encode_times.note(1, 4, 1.0)
        families = list(CacheCollector(cache).collect())
    expected = {
        f"{family.name}_total" if family.type == "counter" else family.name: [
            family.type,
            sorted({label for sample in family.samples for label in sample.labels}),
            family.documentation,
        ]
        for family in families
    }
    rows = rows_below("Metrics")
    table = {codes(name)[0]: [kind, codes(labels), text] for name, kind, _, labels, text in rows}
    assert table == expected


def test_units_of_metrics_are_base_units() -> None:
    for name, _, unit, _, _ in rows_below("Metrics"):
        for ending in ("seconds", "bytes"):
            assert (ending in codes(name)[0]) == (unit.split(" per ")[0] == ending), name
        assert "_ms" not in name


def test_table_of_ranges_has_every_range_that_a_module_opens() -> None:
    opened = {
        tracing.PREFIX + node.args[0].value
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "traced"
        and isinstance(node.args[0], ast.Constant)
    }
    assert [codes(row[0]) for row in rows_below("Tracing")] == [
        [f"vitcache.{name}"] for name in ("key", "copy", "encode", "place")
    ]
    assert {name for row in rows_below("Tracing") for name in codes(row[0])} == opened


def loggers_of_modules() -> dict[str, str]:
    """The logger that each module makes, by the name of the module."""
    made = {}
    for path, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") != "getLogger":
                continue
            if isinstance(node.args[0], ast.Constant):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                made[module] = node.args[0].value
    return made


def logged_levels() -> set[tuple[str, str]]:
    """Each logger of the product, with each level that a module logs with. Computed levels are left out."""
    made, found = loggers_of_modules(), set()
    for path, tree in trees():
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names = {"logger": made[own]} if own in made else {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in made:
                names |= {each.asname or each.name: made[node.module] for each in node.names}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                logger = getattr(node.func.value, "id", "")
                if (
                    logger.endswith("logger")
                    and logger in names
                    and node.func.attr not in ("setLevel", "log")
                ):
                    level = LEVELS.get(node.func.attr, node.func.attr.upper())
                    found.add((names[logger], level))
    return found


def test_table_of_loggers_has_every_logger_and_level() -> None:
    table = [(codes(logger)[0], level) for logger, level, _ in rows_below("Logs")]
    assert len(set(table)) == len(table)
    assert set(table) == logged_levels()
    assert {logger for logger, _ in table} == set(loggers_of_modules().values())


def test_table_of_environment_variables_has_every_variable_that_the_product_reads() -> None:
    in_python = {name for path in MODULES for name in re.findall(r"\bVITCACHE_[A-Z_]+\b", path.read_text())}
    in_native = {
        name
        for path in (ROOT / "csrc").rglob("*.cpp")
        for name in re.findall(r'environment\("(\w+)"\)', path.read_text())
    }
    assert {"VITCACHE_DISABLE", "VITCACHE_TRACE"} <= in_python
    assert in_native == {"LD_LIBRARY_PATH", "VITCACHE_NO_CUDA", "VITCACHE_CUDART"}
    assert {codes(row[0])[0] for row in rows_below("Environment variables")} == in_python | in_native
