"""`python -m vitcache.bench.tables` fills the tables of a Markdown file; those of docs/ equal the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcache.bench import tables, worth_table
from vitcache.bench.harness.record import FIELDS
from vitcache.tiers.encode_times import EncodeTimes
from vitcache.tiers.worth import WorthRule

ROOT = Path(__file__).parents[2]
TEXT = "before\n<!-- table: pages encodes -->\nold\n<!-- end -->\nafter\n"


def result(case: str, contender: str, value: float, **fields: Any) -> dict[str, Any]:
    machine = {"device": "cpu x", "torch": "2.13", "commit": "abc", "utc": "2026-11-28T00:00:00"}
    names = {"case": case, "contender": contender, "metric": "encodes", "unit": "encodes"}
    return {**dict.fromkeys(FIELDS), **names, "value": value, **machine, **fields}


def test_newest_ignores_a_newer_file_without_the_metric(tmp_path: Path) -> None:
    """The bench `step` has other metrics on a GPU than on a CPU."""
    on_cpu = [result("5%", "LRU", 100)]
    on_gpu = [{**result("5%", "LRU", 7), "metric": "step_us", "utc": "2026-12-01T00:00:00"}]
    (tmp_path / "pages-cpu.json").write_text(json.dumps(on_cpu))
    (tmp_path / "pages-gpu.json").write_text(json.dumps(on_gpu))
    assert tables.newest("pages", "encodes", tmp_path) == on_cpu
    assert tables.newest("pages", "step_us", tmp_path) == on_gpu
    assert tables.newest("pages", "other", tmp_path) == []


def test_fill_writes_a_row_per_case_and_a_column_per_contender(tmp_path: Path) -> None:
    rows = [
        result("5%", "LRU", 100, ratio=1.0, ratio_to="LRU"),
        result("5%", "pages", 12345.0, ratio=1.5, ratio_to="LRU", meets_target=False),
        result("9%", "pages", 0.25, ratio=0.125, ratio_to="LRU", meets_target=True),
        {**result("9%", "pages", 3), "metric": "other"},
    ]
    (tmp_path / "pages-cpu.json").write_text(json.dumps(rows))
    lines = tables.fill(TEXT, tmp_path).splitlines()
    assert lines == [
        "before",
        "<!-- table: pages encodes -->",
        "",
        "|  | LRU | pages |",
        "| --- | --- | --- |",
        "| 5% | 100 | **12,345 (1.50)** |",
        "| 9% |  | 0.25 (0.12) |",
        "",
        "encodes, encodes (ratio to LRU); cpu x, torch 2.13, commit abc, 2026-11-28.",
        "<!-- end -->",
        "after",
    ]
    assert tables.fill("\n".join(lines), tmp_path).splitlines() == lines


def test_fill_without_a_result_file_says_that_no_file_exists(tmp_path: Path) -> None:
    filled = tables.fill(TEXT, tmp_path)
    assert "No result `encodes` of the bench `pages` exists yet." in filled
    assert "old" not in filled


def test_newest_takes_the_file_with_the_latest_result(tmp_path: Path) -> None:
    for name, day in (("a", "2026-11-27"), ("b", "2026-11-28"), ("c", "2026-11-26")):
        (tmp_path / f"pages-{name}.json").write_text(json.dumps([result(name, "pages", 1, utc=day)]))
    assert [row["case"] for row in tables.newest("pages", "encodes", tmp_path)] == ["b"]


def test_main_fills_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    path.write_text(TEXT)
    monkeypatch.setattr("sys.argv", ["tables", str(path), "--results", str(tmp_path)])
    tables.main()
    assert path.read_text() == tables.fill(TEXT, tmp_path)


MEMORY_TEXT = "before\n<!-- table: memory -->\nold\n<!-- end -->\nafter\n"


def test_fill_writes_a_row_for_each_model_of_the_memory_file(tmp_path: Path) -> None:
    images = [
        {"image": "1280x720", "rows": 880, "pages": 55, "bytes": 55 << 20},
        {"image": "1920x1080", "rows": 2040, "pages": 128, "bytes": 128 << 20},
    ]
    model = {"model": "M", "checkpoint": "a/m", "dtype": "bfloat16", "images": images}
    report = {"transformers": "5.23", "page_rows": 16, "models": [model]}
    (tmp_path / "memory.json").write_text(json.dumps(report))
    lines = tables.fill(MEMORY_TEXT, tmp_path).splitlines()
    assert lines[:3] == ["before", "<!-- table: memory -->", ""]
    assert lines[3].startswith("| model | 1280x720: rows | MiB | images per GiB | 1920x1080: rows |")
    assert lines[5] == "| [M](https://huggingface.co/a/m) | 880 | 55.0 | 18 | 2,040 | 128.0 | 8 |"
    assert "transformers 5.23" in lines[7]
    assert lines[8:] == ["<!-- end -->", "after"]
    assert tables.fill("\n".join(lines), tmp_path).splitlines() == lines


def test_fill_without_a_memory_file_says_that_no_file_exists(tmp_path: Path) -> None:
    filled = tables.fill(MEMORY_TEXT, tmp_path)
    assert "No result file memory.json exists yet." in filled
    assert "old" not in filled


def test_fill_writes_the_least_encode_time_of_each_model_and_network(tmp_path: Path) -> None:
    images = [{"image": "1280x720", "rows": 880}, {"image": "1920x1080", "rows": 2040}]
    models = [
        {"model": name, "row_width": width, "images": images}
        for name, width in (("Qwen3-VL-8B", 16384), ("M", 8750))
    ]
    (tmp_path / "memory.json").write_text(json.dumps({"models": models}))
    lines = tables.fill("<!-- table: worth -->\n<!-- end -->\n", tmp_path).splitlines()
    assert lines[4:7] == [
        "| Qwen3-VL-8B | 880 | 28.8 | 27 | **65.9** | 26.4 | 6.6 | 3.3 |",
        "| Qwen3-VL-8B, no deepstack | 880 | 7.2 | 27 | 16.5 | 6.6 | 1.6 | 0.8 |",
        "| M | 880 | 15.4 |  | 35.2 | 14.1 | 3.5 | 1.8 |",
    ]
    # The bytes in the time of the rule, at the bandwidth of the table: exactly the part of the encode time.
    rule = WorthRule(worth_table.WORTH, 2, EncodeTimes(27.0 / 880, torch.device("cpu")), lambda: 0.0)
    for _ in range(2):  # the first measurement is dropped
        rule.note_fetch(10**9, 10**9 / (worth_table.SHARE * 25e9 / 8))
    assert rule.may_fetch(880, 16384)  # 26.4 of 27 ms
    assert not rule.may_fetch(880, 17000)


PAGES = ["README.md", "docs/benchmarks.md", "docs/changes.md", "docs/sizing.md", "docs/tiers.md"]


@pytest.mark.parametrize("page", PAGES)
def test_tables_of_a_page_equal_the_result_files(page: str) -> None:
    text = (ROOT / page).read_text()
    assert tables.TABLE.search(text)
    assert tables.fill(text, ROOT / "bench/results") == text, f"run python -m vitcache.bench.tables {page}"


def test_fill_of_an_empty_table_leaves_the_text_behind_it(tmp_path: Path) -> None:
    filled = tables.fill("<!-- table: memory -->\n<!-- end -->\nafter\n", tmp_path)
    assert filled.endswith("<!-- end -->\nafter\n")
    assert filled.count("No result file") == 1


def test_fill_with_an_unknown_table_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got 'spam'"):
        tables.fill("<!-- table: spam -->\n<!-- end -->\n", tmp_path)
