"""A server whose encoder fails for some images ends their requests only, over each API."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from engine_runner import chat
from engine_runner.message import data_url, message
from PIL import Image
from sglang_runner.child import NUM_TOKENS
from sglang_runner.odd_images import BLACK, GREY, HOLD, WHITE, of_colour
from sglang_runner.server import Server, chat_body, native_body

pytestmark = pytest.mark.full
Serve = Callable[..., Server]
CHAT, NATIVE = "/v1/chat/completions", "/generate"
BODIES = {CHAT: chat_body, NATIVE: native_body}
# The images that cannot be encoded, and words of the error.
BAD = {"black": (BLACK, "ValueError: the image is black"), "white": (WHITE, "rows, got")}
LIMIT_S = 60


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the files by which the encoder waits at a grey image."""
    return tmp_path_factory.mktemp("hold")


@pytest.fixture(scope="module")
def server(serve: Serve, hold: Path) -> Iterator[Server]:
    """A server that gets Ctrl-C after the last test."""
    with serve("failures", "vitcache", "odd_images", **{HOLD: str(hold)}) as server:
        yield server
        server.stop()
        server.wait_for_end()


def status_of(server: Server, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status and the text of an answer that is an error."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.post(path, body)
    return caught.value.code, caught.value.read().decode()


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", BAD)
def test_image_that_cannot_be_encoded_ends_its_request_with_status_500(
    name: str, path: str, server: Server
) -> None:
    colour, words = BAD[name]
    answer, before = server.chat([chat.image(0)]), server.counts()
    status, text = status_of(server, path, BODIES[path]([chat.image(0), of_colour(colour)]))
    assert status == HTTPStatus.INTERNAL_SERVER_ERROR
    assert words in text
    assert server.chat([chat.image(0)])["logprobs"] == answer["logprobs"]
    after = server.counts()
    assert (after["errors"], after["ended"]) == (before["errors"] + 1, before["ended"] + 1)


@pytest.mark.parametrize("path", BODIES)
def test_streamed_request_of_a_bad_image_has_an_event_with_the_error(path: str, server: Server) -> None:
    body = BODIES[path]([of_colour(BLACK)]) | {"return_token_ids": False}
    [event] = server.events(path, body)
    assert BAD["black"][1] in json.dumps(event)


def test_requests_beside_bad_ones_are_answered_and_their_rows_are_right(server: Server) -> None:
    numbers = range(1, 8)
    for tenant in ("alone", "at once"):
        later(server, 0, tenant)  # the KV of the first tokens, so that all chunks are equal
    alone = [later(server, number, "alone") for number in numbers]
    before, salt = server.counts(), {"cache_salt": "at once"}
    with ThreadPoolExecutor(2 * len(numbers)) as threads:
        bad = [
            threads.submit(status_of, server, CHAT, chat_body([chat.image(number), of_colour(BLACK)], **salt))
            for number in numbers
        ]
        good = [threads.submit(server.chat, [chat.image(number)], **salt) for number in numbers]
        assert {answer.result()[0] for answer in bad} == {HTTPStatus.INTERNAL_SERVER_ERROR}
        assert {len(answer.result()["tokens"]) for answer in good} == {NUM_TOKENS}
    between = server.counts()
    assert between["ended"] == before["ended"] + len(numbers)
    # The last bits of a forward pass depend on its batch. So the rows are read again, one request at a time.
    assert [later(server, number, "at once") for number in numbers] == alone
    assert server.counts()["encodes"] == between["encodes"]


def later(server: Server, number: int, tenant: str) -> dict[str, Any]:
    """The answer to a prompt whose first tokens are new, so that SGLang computes the tokens of the image."""
    messages = [{"role": "system", "content": "Later."}, message([chat.image(number)])]
    return server.chat([], messages=messages, cache_salt=tenant)


@pytest.mark.parametrize("path", BODIES)
def test_data_that_are_no_image_are_refused_before_the_scheduler(path: str, server: Server) -> None:
    before = server.counts()
    body = json.dumps(BODIES[path]([chat.image(0)])).replace(
        data_url(chat.image(0)), "data:image/png;base64,AAAA"
    )
    status, text = status_of(server, path, json.loads(body))
    assert status == HTTPStatus.BAD_REQUEST
    assert "Could not decode image" in text
    assert server.counts() == before


def test_clients_that_leave_during_an_encode_cost_no_other_encode(server: Server, hold: Path) -> None:
    answer, before = server.chat([chat.image(0)]), server.counts()
    clients = [send(server, of_colour(GREY))]
    server.wait_for((hold / "is_held").exists, LIMIT_S, "does not encode the grey image")
    clients += [send(server, chat.image(number)) for number in (8, 9)]
    for client in clients:
        client.close()
    server.wait_for(lambda: num_left(server) == len(clients), LIMIT_S, "does not see that clients have left")
    (hold / "may_continue").touch()
    assert server.chat([chat.image(0)])["logprobs"] == answer["logprobs"]
    after = server.counts()
    assert after["encodes"] == before["encodes"] + 1
    assert after["errors"] == before["errors"]
    assert server.get("/flush_cache?timeout=10", b"")  # SGLang refuses while a request is left


def send(server: Server, image: Image.Image) -> HTTPConnection:
    """Send a request, and do not wait for the answer."""
    client = HTTPConnection("127.0.0.1", server.port)
    body = json.dumps(native_body([image]))
    client.request("POST", NATIVE, body, {"content-type": "application/json"})
    return client


def num_left(server: Server) -> int:
    """The number of requests whose client has left, by the log."""
    return server.log.read_text(errors="replace").count("disconnected from the client side")
