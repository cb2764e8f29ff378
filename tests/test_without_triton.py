"""vitcache on a machine without Triton: torch for the CPU does not bring it, and the CPU needs no kernels.

Each test runs in a new process whose packages are those of this one, except Triton.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import vitcache

USE = """
import importlib, json
from importlib.util import find_spec
import torch, vitcache

assert find_spec("triton") is None
for name in vitcache.__all__:
    getattr(vitcache, name)

key, rows = bytes(32), torch.arange(24.0).reshape(3, 8)
cache = vitcache.EmbeddingCache(8, dtype=torch.float32, device="cpu", device_bytes=1 << 14)
cache.put(key, rows)
placed = torch.zeros(5, 8)
with cache.get(key) as lease:
    vitcache.scatter_embeddings(placed, [lease], [1])

with vitcache.PinnedRing(1 << 16) as ring:
    copied = torch.zeros(3, 8)
    ring.copy_to(copied, rows).synchronize()

pipeline = vitcache.VisionPipeline(lambda features, items: features, cache)
chunk = vitcache.Chunk([vitcache.Item(rows, [vitcache.Span(1, 3)])], 0, 5)
result = pipeline.embed([chunk], torch.zeros(5, dtype=torch.int64), torch.zeros(4, 8))
found = (placed[1:4], copied, result.inputs_embeds[1:4])
print(json.dumps([torch.equal(each, rows) for each in found]))
"""

ATTACH = """
import json, torch, vitcache
from vitcache.demo.families import FAMILIES
from vitcache.demo.turns import build

model = build(FAMILIES["qwen3_vl"], torch.device("cpu"))
image = {"pixel_values": torch.ones(16, 1536), "image_grid_thw": torch.tensor([[1, 4, 4]])}
attachment = vitcache.attach(model)
with torch.no_grad():
    for _ in range(2):
        model.model.get_image_features(**image)
stats = attachment.stats()
print(json.dumps([stats.encoded, stats.hits]))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to every installed package except Triton; an overlay is before .venv."""
    folder = tmp_path_factory.mktemp("packages")
    overlays = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    for place in (*filter(None, overlays), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        for path in Path(place).resolve().iterdir():
            link = folder / path.name
            if (
                path.suffix != ".pth"
                and not path.name.startswith(("triton", "vitcache"))
                and not link.exists()
            ):
                link.symlink_to(path)
    (folder / "vitcache").symlink_to(Path(str(vitcache.__file__)).parent)
    return folder


def run_python(packages: Path, folder: Path, *arguments: str) -> str:
    """Run Python in `folder` with only these packages; return its standard output."""
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-S", "-P", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cache_ring_pipeline_and_placement_run_without_triton(packages: Path, tmp_path: Path) -> None:
    assert json.loads(run_python(packages, tmp_path, "-c", USE)) == [True, True, True]


def test_attach_encodes_an_image_once_without_triton(packages: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert json.loads(run_python(packages, tmp_path, "-c", ATTACH)) == [1, 1]


def test_demo_runs_without_triton(packages: Path, tmp_path: Path) -> None:
    for name in ("transformers", "rich", "skimage", "sklearn", "PIL"):
        pytest.importorskip(name)
    options = ("--size", "tiny", "--turns", "1", "--json", "demo.json")
    run_python(packages, tmp_path, "-m", "vitcache", "demo", *options)
    [row] = json.loads((tmp_path / "demo.json").read_text())["rows"]
    assert row["equal"]


def test_bench_of_the_cache_runs_without_triton(packages: Path, tmp_path: Path) -> None:
    options = ("--bench", "cache", "--cases", "smoke", "--out", str(tmp_path))
    run_python(packages, tmp_path, "-m", "vitcache", "bench", *options)
    [results] = tmp_path.glob("cache-*.json")
    assert {row["triton"] for row in json.loads(results.read_text())} == {None}
