"""The requests that servers with vitcache and without it answer over HTTP, and their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine_runner import chat
from engine_runner.message import message

from sglang_runner.server import Server, chat_body, native_body, read

# The images of the user's messages of a conversation. The last message has none.
MESSAGES = ([0], [1, 2], [3], [])
NUM_IMAGES = sum(map(len, MESSAGES))
TWO = [4, 5]
LATER = [6, 7]  # first seen after the new weights, unless `before` asks for them
TENANTS = ("a", "a", "b")


def images(numbers: Sequence[int]) -> list[Any]:
    return [chat.image(number) for number in numbers]


def conversation(server: Server) -> list[dict[str, Any]]:
    """The answer to each turn of a conversation.

    The first message tells the number of the turn. So SGLang computes the whole prompt in each turn.
    """
    answers, messages = [], []
    for number, turn in enumerate(MESSAGES):
        messages.append(message(images(turn)))
        first = {"role": "system", "content": f"{number} turns ago, the chat began."}
        answers.append(read(server.post("/v1/chat/completions", chat_body([], messages=[first, *messages]))))
        messages.append({"role": "assistant", "content": f"Answer {number}."})
    return answers


def native(server: Server) -> dict[str, Any]:
    """The answer of `/generate`, and the last event of the same answer as a stream."""
    whole = server.post("/generate", native_body(images(TWO)))
    streamed = server.events("/generate", native_body(images(TWO)))[-1]
    return {
        name: {"tokens": answer["output_ids"], "logprobs": answer["meta_info"]["output_token_logprobs"]}
        for name, answer in (("whole", whole), ("streamed", streamed))
    }


def tenants(server: Server) -> list[dict[str, Any]]:
    """The answers to one message, each with the `cache_salt` of a tenant."""
    return [server.chat(images(TWO), cache_salt=salt) for salt in TENANTS]


def flushed(server: Server) -> dict[str, Any]:
    """The answer to a known message after a flush."""
    server.get("/flush_cache?timeout=10", b"")
    return server.chat(images(TWO))


def before(server: Server) -> dict[str, Any]:
    """The answer about images that are known when the weights change."""
    return server.chat(images(LATER))


def updated(server: Server) -> dict[str, Any]:
    """The answer with other weights."""
    done = server.post("/update_weights_from_disk", {"model_path": f"{server.model}-other"})
    return {"done": done["success"], **server.chat(images(LATER))}


def serve(server: Server, steps: Sequence[Callable[[Server], Any]]) -> dict[str, Any]:
    """The result of each step by its name, and vitcache's counts after it as `NAME counts`."""
    found: dict[str, Any] = {}
    for step in steps:
        found[step.__name__] = step(server)
        found[f"{step.__name__} counts"] = server.counts() if server.has_vitcache else None
    return found
