"""Calls that make keys."""

from __future__ import annotations

from contextlib import ExitStack

from public_calls.call import Call, Valid
from vitcache import KeyAliases, KeyThreads, Namespace, content_key, key_from_id

KEY = bytes(32)


def submit(stack: ExitStack) -> Call:
    threads = stack.enter_context(KeyThreads(1))
    arguments = {"feature": b"photo", "namespace": b"", "extra": None}
    return lambda **given: threads.submit(**given).result(60), arguments


def submit_many(stack: ExitStack) -> Call:
    threads = stack.enter_context(KeyThreads(1))
    arguments = {"features": [b"photo"], "namespace": b"", "extras": [None], "on_done": None}
    return lambda **given: [future.result(60) for future in threads.submit_many(**given)], arguments


def namespace(stack: ExitStack) -> Call:
    names = dict.fromkeys(("model", "revision", "processor", "adapter", "dtype", "tenant"), "a")
    return lambda **given: Namespace(**given).digest(), {**names, "epoch": 0}


CALLS: dict[str, Valid] = {
    "content_key": lambda stack: (
        content_key,
        {"feature": b"photo", "namespace": b"", "extra": {"size": 3}, "num_threads": 1},
    ),
    "key_from_id": lambda stack: (key_from_id, {"identifier": "photo", "namespace": b""}),
    "Namespace": namespace,
    "KeyThreads": lambda stack: (lambda **given: KeyThreads(**given).close(), {"num_threads": 1}),
    "KeyThreads.submit": submit,
    "KeyThreads.submit_many": submit_many,
    "KeyAliases": lambda stack: (KeyAliases, {"max_entries": 4}),
    "KeyAliases.get": lambda stack: (KeyAliases().get, {"file_key": KEY}),
    "KeyAliases.add": lambda stack: (KeyAliases().add, {"file_key": KEY, "key": KEY, "num_rows": 1}),
}
