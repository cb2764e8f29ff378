"""The Python frames that vitcache enters in one step of SGLang's released caller whose images all hit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """
import json
from vitcache.bench import frames
print(json.dumps({count.call: count.by_file for count in frames.count_sglang()}))
"""
LIMIT_S = 300


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, int]]:
    """By call, the frames of each file. A process of its own applies the hooks."""
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        pytest.fail(done.stderr, pytrace=False)
    frames: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return frames


@pytest.mark.parametrize(("kind", "most"), [("hits", 45), ("hits, 3 levels", 75)])
def test_step_of_a_known_request_enters_few_frames_equal_for_every_number_of_images(
    counted: dict[str, dict[str, int]], kind: str, most: int
) -> None:
    one, eight, many = (counted[f"sglang, {images} {kind}"] for images in (1, 8, 32))
    assert one == eight == many
    assert one["adapters/sglang/hooks.py"] > 0
    assert sum(one.values()) <= most


def test_step_of_a_new_request_enters_frames_in_proportion_to_its_images(
    counted: dict[str, dict[str, int]],
) -> None:
    one, eight, many = (sum(counted[f"sglang, {images} hits, new"].values()) for images in (1, 8, 32))
    per_image = (many - eight) / 24
    assert eight - one == pytest.approx(7 * per_image, rel=0.1)
    assert 0 < per_image <= 90
