"""The examples, run as scripts."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS_GPU = {"time_placement.py"}


def run_example(name):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, EXAMPLES / name], env=environment, capture_output=True, text=True)


def test_engine_step_encodes_the_image_of_two_requests_once() -> None:
    done = run_example("engine_step.py")
    assert done.returncode == 0, done.stderr
    assert "encoded 2 images for 3 items" in done.stdout


def test_engine_place_encodes_each_image_once_and_reports_the_broken_one() -> None:
    done = run_example("engine_place.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "encode ['cat.png', 'dog.png']",
        "turn 0: (32, 64), failed requests: [1]",
        "turn 1: (16, 64), failed requests: []",
    ]


def test_engine_forward_gives_the_same_embeddings_from_the_cache():
    done = run_example("engine_forward.py")
    assert done.returncode == 0, done.stderr
    assert "equal: True" in done.stdout
    assert "hits=2, misses=2" in done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_uses_public_names_only(path):
    import vitcache

    tree = ast.parse(path.read_text())
    names = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "vitcache"
    ]
    assert names
    assert set(names) <= set(vitcache.__all__)


def test_gpu_example_runs_if_cuda_is_available():
    for name in NEEDS_GPU:
        if torch.cuda.is_available():
            assert run_example(name).returncode == 0
        else:
            assert "cuda" in (EXAMPLES / name).read_text()
