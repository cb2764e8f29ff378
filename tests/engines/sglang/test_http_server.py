"""`sglang serve` with vitcache gives the answers of a server without it, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sglang_runner import served
from sglang_runner.odd_images import BLACK, of_colour
from sglang_runner.server import IMAGE_TOKEN, SCHEDULER, Server

pytestmark = pytest.mark.full
Serve = Callable[..., Server]
Found = dict[str, Any]
STEPS = (served.conversation, served.native, served.tenants, served.flushed)


@pytest.fixture(scope="module")
def stock(serve: Serve) -> Found:
    """The answers of SGLang. Its encoder raises at the last request, about a black image."""
    with serve("stock", "odd_images") as server:
        found = served.serve(server, (*STEPS, served.updated))
        with suppress(OSError):
            server.chat([of_colour(BLACK)])
        return {**found, "has_ended": server.ends()}


@pytest.fixture(scope="module")
def vitcache(serve: Serve) -> Found:
    """The answers of a server with vitcache. At last, its scheduler is killed."""
    with serve("vitcache", "vitcache") as server:
        found = served.serve(server, (*STEPS, served.before, served.updated))
        server.kill(SCHEDULER)
        return {**found, "has_ended": server.ends()}


@pytest.mark.parametrize("step", [step.__name__ for step in (*STEPS, served.updated)])
def test_server_gives_the_answers_of_stock(step: str, stock: Found, vitcache: Found) -> None:
    assert vitcache[step] == stock[step]


def test_conversation_encodes_each_image_once(vitcache: Found) -> None:
    counts = vitcache["conversation counts"]
    for answer in vitcache["conversation"]:
        assert answer["cached_tokens"] < answer["prompt"].index(IMAGE_TOKEN)
    assert counts["encodes"] == counts["cache"]["entries"] == served.NUM_IMAGES
    assert counts["cache"]["hits"] > 0


def test_streamed_answer_has_the_tokens_of_the_whole_one(vitcache: Found) -> None:
    assert vitcache["native"]["streamed"] == vitcache["native"]["whole"]


def test_each_cache_salt_of_the_api_has_entries_of_its_own(vitcache: Found) -> None:
    first, again, other = vitcache["tenants"]
    encodes = vitcache["tenants counts"]["encodes"] - vitcache["native counts"]["encodes"]
    assert encodes == len(served.TWO) * len(set(served.TENANTS))
    assert first["cached_tokens"] == other["cached_tokens"] == 0 < again["cached_tokens"]
    assert first["logprobs"] == other["logprobs"]


def test_flush_over_http_removes_all_entries(vitcache: Found) -> None:
    counts = vitcache["flushed counts"]
    assert counts["encodes"] - vitcache["tenants counts"]["encodes"] == len(served.TWO)
    assert counts["cache"]["entries"] == len(served.TWO)
    assert vitcache["flushed"]["cached_tokens"] == 0


def test_weights_updated_over_http_give_new_rows_of_known_images(vitcache: Found) -> None:
    assert vitcache["updated"]["done"]
    assert vitcache["updated"]["prompt"] == vitcache["before"]["prompt"]
    assert vitcache["updated"]["logprobs"] != vitcache["before"]["logprobs"]
    encodes = vitcache["updated counts"]["encodes"] - vitcache["before counts"]["encodes"]
    assert encodes == len(served.LATER)


def test_no_step_is_left_to_sglang_and_no_image_fails(vitcache: Found) -> None:
    counts = vitcache["updated counts"]
    assert counts["originals"] == {}
    assert counts["errors"] == counts["unshared"] == 0


def test_killed_scheduler_ends_all_processes_of_the_server(vitcache: Found) -> None:
    assert vitcache["has_ended"]


def test_server_of_sglang_alone_ends_at_an_image_that_cannot_be_encoded(stock: Found) -> None:
    assert stock["has_ended"]
