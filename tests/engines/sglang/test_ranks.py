"""Two tensor parallel ranks through SGLang's released functions, with its own groups of ranks.

The ranks of the tower add their halves. Their caches differ, and both encode the same items, and fail alike.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from ranks import run_ranks
from sglang_scene.ranks import STOCK_TIMEOUT

MESSAGE = 256  # bytes


class Pair(NamedTuple):
    """The results of a scene on both ranks."""

    first: Any
    second: Any

    def both(self) -> Any:
        """The result, which is equal on both ranks."""
        assert self.first == self.second
        return self.first


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    for rank in run_ranks("sglang_rank.py", folder, str(folder), timeout=240):
        assert rank.returncode == 0, rank.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def scene(results: list[dict[str, Any]], request: pytest.FixtureRequest) -> Pair:
    """The results of the scene that a test names."""
    return Pair(*(rank[request.param] for rank in results))


of_scene = pytest.mark.parametrize


@of_scene("scene", ["diverge"], indirect=True)
def test_ranks_whose_caches_differ_encode_the_items_that_one_of_them_misses(scene: Pair) -> None:
    found = scene.both()
    # Three images are encoded in the first step, and again after the cache of one rank was cleared.
    assert found["encodes"] == [3, 3, 6, 9, 9]
    assert found["right"] == [True] * 5
    assert found["errors"] == 0


@of_scene("scene", ["diverge"], indirect=True)
def test_step_of_hits_has_one_all_reduce_and_each_encoder_call_two_more(scene: Pair) -> None:
    hits, calls = [MESSAGE], 2
    encoded = [MESSAGE] * (1 + 2 * calls + 1)  # the last one is behind the placement
    assert scene.both()["agreements"] == [encoded, hits, encoded, encoded, hits]


@of_scene("scene", ["many"], indirect=True)
def test_states_behind_the_first_62_are_in_a_second_all_reduce(scene: Pair) -> None:
    found = scene.both()
    rest = (70 - 62) * 4
    assert found["agreements"] == [MESSAGE, rest, MESSAGE, rest, MESSAGE, MESSAGE, rest]
    assert found["right"]


@of_scene("scene", ["load"], indirect=True)
def test_image_that_one_rank_cannot_read_fails_on_both_and_is_encoded_later(scene: Pair) -> None:
    found = scene.both()
    for case in found:
        assert case["failed"]
        assert case["mended"]
        assert case["errors"] == 1
    # A miss on both ranks: the images, and then the failed one. After a hit on one of them: all once more.
    assert [case["encodes"] for case in found] == [1, 2, 2] * 2 + [3, 6, 6] * 2


@of_scene("scene", ["behind_the_encoder"], indirect=True)
def test_rows_that_one_rank_cannot_take_are_zero_on_both(scene: Pair) -> None:
    found = scene.both()
    assert found == {"failed": True, "mended": True, "errors": 1, "encodes": 4}


@of_scene("scene", ["ends"], indirect=True)
def test_encoder_that_ends_differently_on_one_rank_raises_on_both(scene: Pair) -> None:
    for rank in scene:
        for name, error in rank.items():
            assert error.startswith("RuntimeError: vitcache: an encoder has"), name
            assert error.endswith("on this rank, but ended differently on another one"), name
    for name in ("raises", "converts"):
        assert "raised ValueError: only on this rank" in scene.second[name]


@of_scene("scene", ["disks"], indirect=True)
def test_ranks_whose_disks_differ_hold_equal_requests_and_encode_equal_images(scene: Pair) -> None:
    assert [rank.pop("own") for rank in scene] == [2, 2]
    found = scene.both()
    assert found["right"] == [True] * 4
    assert found["encodes"] == [3, 2]
    batches = [batch for batch in found["batches"] if batch]
    assert sorted(name for batch in batches for name in batch) == ["again", "image", "text"]
    assert "text" in batches[0]


@of_scene("scene", ["random_steps"], indirect=True)
def test_random_steps_are_right_on_ranks_with_different_caches(scene: Pair) -> None:
    for first, second in zip(*scene, strict=True):
        for name in ("steps", "repeated", "digest", "calls", "counts"):
            assert first[name] == second[name], name
        assert first["cache"] != second["cache"]
        assert set(first["steps"]) == {"right", "failed on one rank"}
        *_, errors, unshared, originals = first["counts"]
        assert errors > first["steps"]["failed on one rank"] > 0
        assert first["repeated"] > 0
        assert unshared > 0
        assert originals == {}


@of_scene("scene", ["stock_deadlock"], indirect=True)
def test_stock_ranks_whose_caches_differ_wait_for_each_other(scene: Pair) -> None:
    assert f"Timed out waiting {STOCK_TIMEOUT.seconds}000ms" in scene.first  # in the collective of the tower
    assert scene.second == "nothing was raised"


@of_scene("scene", ["lost"], indirect=True)
def test_rank_that_raises_before_a_collective_ends_both_ranks(scene: Pair) -> None:
    assert scene.second.startswith(
        "RuntimeError: vitcache: an encoder has raised ValueError: only on this rank on this rank, and "
        "another rank did not end the call"
    )
    assert scene.first.startswith("RuntimeError: vitcache: an encoder has raised RuntimeError")
