"""docs/sglang.md: its options, tables, log lines and messages are those of the code."""

from __future__ import annotations

import inspect
import logging
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang_page import count_table, reason_table, size_table
from vllm_page import ITEMSIZE, MODELS, SIZES

from vitcache.adapters.sglang import model_cache, model_memory, model_tiers, start_up
from vitcache.adapters.sglang.model_cache import FETCH_TIMEOUT_S
from vitcache.adapters.sglang.model_memory import UNRESERVED_BYTES
from vitcache.adapters.sglang.options import VARIABLE, Options
from vitcache.adapters.sglang.start_up import ANY_VERSION, TESTED_VERSIONS
from vitcache.adapters.sglang.targets import TARGETS
from vitcache.pipeline.feature_mover import RING_BYTES
from vitcache.pipeline.vision_pipeline import MAX_ROWS_PER_ENCODE, VisionPipeline

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/sglang.md").read_text()
OF_SGLANG = "Failed to load plugin vitcache"
OF_THE_CACHE = "raise device_bytes"  # as in docs/troubleshooting.md, which is compared with the code


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its first two lines."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def default(name: str, owner: Any = VisionPipeline) -> Any:
    return inspect.signature(owner).parameters[name].default


@pytest.mark.parametrize(
    "lines", [size_table(), reason_table(), count_table()], ids=["size", "reason", "count"]
)
def test_table_of_the_page_is_the_computed_one(lines: list[str]) -> None:
    """To update the page, run `python tests/support/sglang_page.py`."""
    assert "\n".join(lines) in PAGE


def test_table_of_options_has_every_option_and_its_default() -> None:
    defaults = {cells[0].strip("`"): cells[1] for cells in rows_below("Options")[: len(fields(Options))]}
    assert list(defaults) == list(inspect.signature(Options).parameters)
    assert f"{UNRESERVED_BYTES >> 20} MiB" in defaults["device_bytes"]
    assert defaults["host_bytes"] == str(Options().host_bytes)
    assert (Options().max_rows_per_encode, defaults["max_rows_per_encode"]) == (
        None,
        str(MAX_ROWS_PER_ENCODE),
    )
    assert defaults["policy"] == f"`{Options().policy}`"
    assert (Options().ring_bytes, defaults["ring_bytes"].split(" if ")[0]) == (
        None,
        f"{RING_BYTES >> 20} MiB",
    )
    assert (Options().disk, Options().disk_bytes, Options().weights_name) == (None, 0, None)
    assert [defaults["disk"], defaults["disk_bytes"], defaults["mooncake"]] == ["none"] * 3
    assert (Options().mooncake, defaults["mooncake_worth"]) == (None, str(Options().mooncake_worth))
    assert f"at most {FETCH_TIMEOUT_S} s" in PAGE
    assert defaults["trust_engine_hash"] == str(Options().trust_engine_hash).lower()


def test_printed_options_are_accepted_and_change_a_default() -> None:
    printed = re.findall(rf"^({VARIABLE}=.*) sglang serve", PAGE, re.M)
    values = [dict(word.split("=", 1) for word in shlex.split(line))[VARIABLE] for line in printed]
    name, disk = "qwen3-vl-8b of May", "/var/cache/vitcache"
    assert [Options.from_json(value) for value in values] == [
        Options(host_bytes=16 << 30),
        Options(host_bytes=16 << 30, disk=disk, disk_bytes=200 << 30, weights_name=name),
        Options(host_bytes=16 << 30, mooncake="10.0.0.7:50051", weights_name=name),
    ]
    assert PAGE.count(disk) == 3  # in the command of the options, in the line of the log, in that which wipes
    parts = re.findall(r"`(\"\w+\":[^`]+)`", PAGE)
    assert len(parts) > 2
    for text in parts:
        assert Options.from_json(f"{{{text}}}") != Options()


def test_page_has_the_sizes_outside_of_the_tiers() -> None:
    assert default("keep_bytes") == RING_BYTES == 256 << 20
    text = " ".join(PAGE.split())
    assert f"up to {RING_BYTES >> 20} MiB of device memory" in text
    assert f"a pinned ring of {RING_BYTES >> 20} MiB" in text
    fewest = model_cache.MOST_PAGE_ROWS * model_cache.FEWEST_PAGES
    assert f"A tier of less than {fewest:,} rows has smaller pages" in PAGE
    assert [model_cache.page_rows(rows) for rows in (fewest - 1, fewest)] == [8, 16]


def test_page_names_images_that_are_larger_than_the_default_tier() -> None:
    [model] = [model for model in MODELS if model.name == "Qwen3-VL-8B-Instruct"]
    sizes = [f"{width}x{height}" for width, height in SIZES]
    num_bytes = [model.num_rows(*size) * model.row_width * ITEMSIZE for size in SIZES]
    larger = [size for size, each in zip(sizes, num_bytes, strict=True) if each > UNRESERVED_BYTES]
    assert larger == ["2560x1440"]
    assert f"default of 100 MiB, those are images of {larger[0]} pixels" in PAGE


def test_page_names_every_hooked_call_that_changes_weights() -> None:
    first_cells = " ".join(cells[0] for cells in rows_below("After a change of the weights"))
    hooked = [target.name for target in TARGETS if "Update" in target.name or "flush" in target.name]
    assert len(hooked) > 5
    assert [name for name in hooked if f"`{name.rpartition('.')[2]}`" not in first_cells] == []


class Qwen3VLForConditionalGeneration:
    """A model of the name that the page prints."""


def test_printed_log_lines_are_those_of_a_start(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "vitcache.adapters.sglang")
    monkeypatch.setattr(start_up, "check_version", lambda: None)
    monkeypatch.setattr(start_up, "check_targets", lambda: None)
    monkeypatch.setattr(start_up, "check_target", lambda target: None)
    start_up.check_start_up()
    shape = model_cache.StepShape(4096, 3, torch.bfloat16, torch.device("cpu"))
    model_memory.make_memory(Qwen3VLForConditionalGeneration(), shape, 1 << 20, Options()).close()
    model_tiers.log_name(Options(disk="/var/cache/vitcache", weights_name="qwen3-vl-8b of May"))
    printed = re.findall(r"^    (vitcache .*)$", PAGE, re.M)
    assert [record.levelname for record in caplog.records] == ["INFO"] * 3
    sizes = r"\b\d+ MiB|pages of \d+|cuda:0|cpu"  # those of the page are an example
    logged = [record.getMessage() for record in caplog.records]
    assert [re.sub(sizes, "*", line) for line in logged] == [re.sub(sizes, "*", line) for line in printed]


def test_every_message_of_the_page_is_a_message_of_the_code() -> None:
    names = ("arguments.py", "pages/pool.py", "adapters/agreement.py", "tiers/mooncake_address.py")
    shared = [ROOT / "vitcache" / name for name in names]
    paths = [*(ROOT / "vitcache/adapters/sglang").glob("*.py"), *shared]
    sources = [re.sub(r'"\s*f?"', "", path.read_text()) for path in paths]
    fragments = [cells[0].strip("`") for cells in rows_below("Trouble")]
    unknown = {text for text in fragments if not any(text in source for source in sources)}
    assert unknown == {OF_SGLANG, OF_THE_CACHE}


def test_page_names_the_tested_versions_and_the_variables() -> None:
    for text in (*TESTED_VERSIONS, f"{ANY_VERSION}=1", "VITCACHE_DISABLE=1", "SGLANG_PLUGINS"):
        assert text in PAGE
    assert re.findall(r"SGLang (\d+\.\d+\.\d+)", PAGE).count(TESTED_VERSIONS[0]) == len(
        re.findall(r"SGLang \d+\.\d+\.\d+", PAGE)
    )
