"""docs/vllm.md: its flags, options, tables and messages are those of the code."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm_page import MODELS, SIZES, Model, load_table, metric_table, size_table

from vitcache.adapters.vllm.architectures import ARCHITECTURES
from vitcache.adapters.vllm.counts import MERGE_REASONS
from vitcache.adapters.vllm.feature_batches import FeatureBatches
from vitcache.adapters.vllm.plugin import ANY_VERSION, TESTED_VERSIONS
from vitcache.adapters.vllm.row_width import num_packed
from vitcache.adapters.vllm.settings import OPTIONS, PAGE_ROWS, Settings
from vitcache.pipeline.feature_mover import RING_BYTES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/vllm.md").read_text()


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its first two lines."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line.strip() for line in section.splitlines() if line.strip().startswith("|")]
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def flags() -> dict[str, Any]:
    """The values of the flags of the printed command."""
    [command] = re.findall(r"^vllm serve (?:.*\\\n)*.*$", PAGE, re.M)
    words = shlex.split(command.replace("\\\n", " "))
    return {name: json.loads(value) for name, value in pairwise(words) if name[:2] == "--"}


def test_printed_flags_are_accepted_by_the_settings() -> None:
    transfer = flags()["--ec-transfer-config"]
    manager = flags()["--ec-manager-config"]
    model = SimpleNamespace(
        model="m",
        revision=None,
        dtype=torch.bfloat16,
        hf_text_config=SimpleNamespace(hidden_size=4096),
        hf_config=SimpleNamespace(),
    )
    config = SimpleNamespace(
        ec_transfer_config=SimpleNamespace(**transfer),
        ec_manager_config=SimpleNamespace(**{"manager_config": {}, **manager}),
        model_config=model,
    )
    settings = Settings.from_config(config)
    assert (settings.device_bytes, settings.host_bytes) == (2 << 30, 16 << 30)


def test_table_of_options_lists_every_option() -> None:
    assert [cells[0].strip("`") for cells in rows_below("Options")] == list(OPTIONS)
    [default] = [cells[1] for cells in rows_below("Options") if cells[0] == "`page_rows`"]
    assert int(default) == PAGE_ROWS


@pytest.mark.parametrize(
    "lines", [size_table(), load_table(), metric_table()], ids=["size", "load", "metric"]
)
def test_table_of_the_page_is_the_computed_one(lines: list[str]) -> None:
    """To update the page, run `python tests/support/vllm_page.py`."""
    assert "\n".join(lines) in re.sub(r"^ +\|", "|", PAGE, flags=re.M)


def test_sizes_of_the_page_are_those_of_docs_sizing() -> None:
    """Both pages print rows, MiB and images per GiB of an image of 1280x720 and of 1920x1080."""
    lines = (ROOT / "docs/sizing.md").read_text().splitlines()
    cells = {
        line.split("](")[0][3:].lower(): line.split("|")[2:8] for line in lines if line.startswith("| [")
    }
    compared = 0
    for line in size_table()[2:]:
        name, *_, small, large, _ = (cell.strip() for cell in line.strip("|").split("|"))
        for known, numbers in cells.items():
            if name.lower().startswith(known):
                rows = re.findall(r"[\d.]+", f"{small} {large}")
                assert rows == [cell.strip().replace(",", "") for cell in numbers], name
                compared += 1
    assert compared == 4


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_entries_per_gib_are_those_of_the_settings(model: Model) -> None:
    settings = Settings(
        device_bytes=1 << 30,
        host_bytes=0,
        page_rows=PAGE_ROWS,
        row_width=model.row_width,
        dtype=torch.bfloat16,
        namespace=bytes(32),
    )
    for size in SIZES:
        rows = model.num_rows(*size)
        assert model.entries_per_gib(rows) == settings.device_pages // settings.pages_for(rows)


def named(part: str) -> Model:
    [model] = [model for model in MODELS if model.name.startswith(part)]
    return model


@pytest.mark.transformers
@pytest.mark.parametrize(
    ("name", "factor", "pixels"),
    [
        ("Qwen2.5-VL-7B", 28, (3136, 12845056)),
        ("Qwen3-VL-8B", 32, (65536, 16777216)),
        ("Qwen3-VL-30B", 32, (65536, 16777216)),
    ],
)
def test_rows_of_qwen_are_those_of_its_image_processor(
    name: str, factor: int, pixels: tuple[int, int]
) -> None:
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    for width, height in SIZES:
        lines, columns = module.smart_resize(height, width, factor, *pixels)
        assert named(name).num_rows(width, height) == lines * columns // factor**2


@pytest.mark.transformers
def test_rows_of_internvl_are_those_of_its_image_processor() -> None:
    module = pytest.importorskip("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
    for width, height in [*SIZES, (448, 448), (900, 450), (1000, 700), (3000, 500)]:
        columns, lines = module.get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
        tiles = columns * lines
        assert named("InternVL3").num_rows(width, height) == (tiles + (tiles > 1)) * 256, (width, height)


@pytest.mark.transformers
def test_vectors_and_rows_of_the_table_are_those_of_the_configurations() -> None:
    transformers = pytest.importorskip("transformers")
    assert named("Qwen3-VL-8B").vectors == num_packed(transformers.Qwen3VLConfig())
    assert named("Qwen3-VL-8B").hidden == transformers.Qwen3VLConfig().text_config.hidden_size
    assert named("Qwen3-VL-30B").vectors == num_packed(transformers.Qwen3VLMoeConfig())
    assert named("Qwen2.5-VL").vectors == num_packed(transformers.Qwen2_5_VLConfig())
    assert named("gemma-3").num_rows(*SIZES[0]) == transformers.Gemma3Config().mm_tokens_per_image


def test_table_of_placements_lists_every_architecture_and_every_reason() -> None:
    section = PAGE.split("\n### Rows go straight into", 1)[1].split("\n## ", 1)[0]
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert re.findall(r"`(\w+)`", table[1][0]) == list(ARCHITECTURES)
    assert {cells[-1].strip("`") for cells in table} == set(MERGE_REASONS)


def test_page_has_the_sizes_of_a_micro_batch_and_of_its_ring() -> None:
    max_rows = inspect.signature(FeatureBatches).parameters["max_rows"].default
    assert f"micro-batches of at most {max_rows} rows" in PAGE
    assert f"a pinned ring of {RING_BYTES >> 20} MiB" in PAGE


def test_every_message_of_the_page_is_a_message_of_the_code() -> None:
    folder = ROOT / "vitcache/adapters/vllm"
    sources = [path.read_text() for path in sorted(folder.glob("*.py"))]
    shared = ("arguments.py", "tiers/mooncake_address.py")
    sources += [(ROOT / "vitcache" / name).read_text() for name in shared]
    fragments = [cells[0].strip("`") for cells in rows_below("Trouble")]
    from_vllm = "Unsupported connector type: VitCacheConnector"
    unknown = [text for text in fragments if text != from_vllm and not any(text in each for each in sources)]
    assert fragments
    assert unknown == []


def test_page_names_the_tested_versions_and_the_variables() -> None:
    for text in (*TESTED_VERSIONS, f"{ANY_VERSION}=1", "VITCACHE_DISABLE=1", "VLLM_PLUGINS"):
        assert text in PAGE
