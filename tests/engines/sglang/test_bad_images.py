"""A real `Engine` ends the request of an image that cannot be encoded, and answers all other ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_runner.pool import Outcome
from sglang_runner.bad_images import BAD, FORMS, PROMPTS
from sglang_runner.cases import CHUNK_OF_BAD
from sglang_runner.faults import FAULTS

Found = dict[str, Any]
NUM_ROWS = 25  # of the image that fails
NUM_SINGLE = 3  # a request of the step "sent", and two turns of the session
CAUSES = {
    "raises": "got none (OSError: damaged image xxx",
    "short": f"got {NUM_ROWS - 1} (ValueError: ",
    "grid": "got none (RuntimeError: The size of tensor",
}


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.engines(name)) for name in ("bad", "bad-in-turn")]
)
def found(request: pytest.FixtureRequest, result: Callable[[str], Found]) -> Found:
    """The result of an engine that overlaps steps, and of one that does not."""
    return result(request.param)


def answer(found: dict[str, Any]) -> dict[str, Any]:
    """An answer without the number of its tokens that were in the prefix cache."""
    return {name: value for name, value in found.items() if name != "cached_tokens"}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("kind", FAULTS)
def test_client_of_a_bad_image_gets_its_error(kind: str, name: str, found: Found) -> None:
    [failed] = found["bad"][kind][name]["failed"]
    assert failed["status_code"] == 500
    number = PROMPTS[name].index(BAD)
    start = f"vitcache: item {number} (IMAGE) has no rows: expected {NUM_ROWS} rows, {CAUSES[kind]}"
    assert failed["detail"].startswith(start)
    assert len(failed["detail"]) < 700


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("kind", FAULTS)
def test_same_prompt_is_answered_right_when_the_encoder_is_mended(kind: str, name: str, found: Found) -> None:
    [mended], [right] = found["bad"][kind][name]["mended"], found["bad"]["right"][name]
    assert answer(mended) == answer(right)
    assert len(right["logprobs"]) == 3


@pytest.mark.parametrize(("name", "kept"), [("only", 0), ("middle", CHUNK_OF_BAD), ("last", CHUNK_OF_BAD)])
@pytest.mark.parametrize("kind", FAULTS)
def test_prefix_cache_keeps_the_chunks_before_the_bad_image_only(
    kind: str, name: str, kept: int, found: Found
) -> None:
    begin, case = found["bad"]["begin"], found["bad"][kind][name]
    assert case["state"] == {**begin, "free_tokens": begin["free_tokens"] - kept}
    assert case["mended"][0]["cached_tokens"] == kept


@pytest.mark.parametrize(("name", "encodes"), [("only", 1), ("middle", 2), ("last", 1)])
@pytest.mark.parametrize("kind", FAULTS)
def test_bad_image_has_no_rows_in_the_cache_and_the_right_ones_have(
    kind: str, name: str, encodes: int, found: Found
) -> None:
    """In the middle, one image is in a chunk behind that of the bad image."""
    assert found["bad"][kind][name]["encodes"] == encodes


@pytest.mark.parametrize("kind", FAULTS)
def test_other_requests_of_the_batch_are_answered_as_without_a_fault(kind: str, found: Found) -> None:
    answers = found["bad"]["together"]
    assert answers[kind][1]["status_code"] == 500
    assert [answers[kind][number] for number in (0, 2)] == [answers["right"][number] for number in (0, 2)]


@pytest.mark.parametrize("form", FORMS)
def test_request_of_each_form_ends_with_the_error(form: str, found: Found) -> None:
    assert list(found["forms"][form]) == list(PROMPTS)
    for [failed] in found["forms"][form].values():
        assert failed["status_code"] == 500
        assert "has no rows" in failed["message" if form == "stream" else "detail"]


def test_client_that_sends_another_grid_than_that_of_its_pixels_gets_an_error(found: Found) -> None:
    [right], [wrong] = found["sent"]["right"], found["sent"]["wrong"]
    assert right == found["bad"]["right"]["only"][0]
    assert wrong["status_code"] == 500
    assert CAUSES["grid"] in wrong["detail"]


def test_turn_that_continues_a_failed_one_fails_or_is_answered_as_its_image_is(found: Found) -> None:
    """SGLang keeps the placeholders of an aborted turn, and without its items the engine would end."""
    session = found["session"]
    for name in ("failed", "again"):
        assert session[name]["status_code"] == 500
        assert CAUSES["short"] in session[name]["detail"]
    assert answer(session["mended"]) == answer(session["right"])
    assert session["end"] == session["begin"]


def test_engine_serves_without_a_lost_slot(found: Found) -> None:
    assert found["bad"]["end"] == found["forms"]["end"] == found["bad"]["begin"]
    assert answer(found["forms"]["right"]) == answer(found["bad"]["together"]["right"][0])


def test_each_failure_is_counted_once(found: Found) -> None:
    counts = found["counts"]["vitcache"]
    num_failed = len(FAULTS) * (len(PROMPTS) + 1) + len(FORMS) * len(PROMPTS) + NUM_SINGLE
    assert counts["errors"] == counts["ended"] == num_failed
    assert counts["originals"] == {}


@pytest.mark.engines("bad-stock")
def test_bad_image_ends_the_engine_of_stock(outcome: Callable[[str], Outcome]) -> None:
    stock = outcome("bad-stock")
    assert stock.code != 0, stock.tail()
    assert not stock.is_cut, stock.tail()
    assert "damaged image" in stock.output, stock.tail()
