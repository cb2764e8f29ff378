"""`KeyAliases`: the last `add` counts, the least recently used alias is removed, namespaces are separate."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache
from interrupts import interrupt, raise_interrupt

from vitcache import Alias, KeyAliases, Namespace, content_key
from vitcache.keys import aliases as aliases_module


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def test_aliases_get_returns_the_alias_that_was_added_last() -> None:
    aliases = KeyAliases()
    assert aliases.get(key(1)) is None
    aliases.add(key(1), key(2), 5)
    assert aliases.get(key(1)) == Alias(key(2), 5)
    aliases.add(key(1), key(3), 7)
    assert aliases.get(key(1)) == Alias(key=key(3), num_rows=7)
    assert aliases.get(key(2)) is None
    assert len(aliases) == 1
    aliases.clear()
    assert len(aliases) == 0
    assert aliases.get(key(1)) is None


def test_aliases_full_remove_the_least_recently_used_alias() -> None:
    aliases = KeyAliases(max_entries=3)
    for number in range(3):
        aliases.add(key(number), key(9), 1)
    aliases.get(key(0))
    aliases.add(key(1), key(9), 2)
    aliases.add(key(3), key(9), 1)
    assert [number for number in range(4) if aliases.get(key(number))] == [0, 1, 3]
    aliases.add(key(4), key(9), 1)
    assert [number for number in range(5) if aliases.get(key(number))] == [1, 3, 4]
    assert len(aliases) == 3


def test_aliases_from_four_threads_keep_the_limit_and_are_not_mixed() -> None:
    aliases, failures = KeyAliases(max_entries=50), []

    def work(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(1, 200, 2000).tolist():
            aliases.add(key(number), key(1000 + number), number)
            alias = aliases.get(key(number))
            if alias not in (None, Alias(key(1000 + number), number)) or len(aliases) > 51:
                failures.append((alias, number))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert len(aliases) == 50


def test_aliases_known_file_is_not_decoded_again_in_its_namespace_only() -> None:
    cache, aliases = make_cache(width=8), KeyAliases()
    decoded = []

    def decode(file: bytes) -> np.ndarray:
        decoded.append(file)
        return np.frombuffer(file.lower(), np.uint8)

    def find_rows(file: bytes, namespace: bytes) -> torch.Tensor:
        file_key = content_key(file, namespace=namespace)
        alias = aliases.get(file_key)
        lease = cache.get(alias.key, num_rows=alias.num_rows) if alias else None
        if lease is None:
            pixels = decode(file)
            pixel_key = content_key(pixels, namespace=namespace)
            aliases.add(file_key, pixel_key, len(pixels))
            lease = cache.get(pixel_key)
            if lease is None:
                encoded = torch.from_numpy(pixels.copy()).float()[:, None].expand(-1, 8)
                cache.put(pixel_key, encoded)
                lease = cache.get(pixel_key)
        with lease:
            return lease.to_tensor()

    mine, other_processor, other_tenant = (
        Namespace("m", processor=processor, tenant=tenant).digest()
        for processor, tenant in (("p", "me"), ("q", "me"), ("p", "you"))
    )
    first = find_rows(b"FILE", mine)
    assert torch.equal(find_rows(b"FILE", mine), first)
    assert decoded == [b"FILE"]
    # Another file with the same pixels is decoded, and its rows are read from the same entry.
    assert torch.equal(find_rows(b"file", mine), first)
    assert (len(decoded), len(cache)) == (2, 1)
    find_rows(b"FILE", other_processor)
    find_rows(b"FILE", other_tenant)
    assert (len(decoded), len(cache)) == (4, 3)
    cache.advance_epoch()
    assert torch.equal(find_rows(b"FILE", mine), first)
    assert len(decoded) == 5


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((b"a", key(1), 1), ValueError, "file_key has 1 bytes, it must have 32"),
        ((key(1), "a", 1), TypeError, "key must be bytes, got str"),
        ((key(1), key(1) + b"a", 1), ValueError, "key has 33 bytes, it must have 32"),
        ((key(1), key(1), 0), ValueError, "num_rows is 0, it must be at least 1"),
        ((key(1), key(1), 2.0), TypeError, "num_rows must be an int, got 2.0 of type float"),
    ],
)
def test_aliases_add_with_an_invalid_argument_raises_and_adds_nothing(
    arguments: tuple[Any, ...], error: type[Exception], match: str
) -> None:
    aliases = KeyAliases()
    with pytest.raises(error, match=match):
        aliases.add(*arguments)
    assert len(aliases) == 0


def test_aliases_with_an_invalid_file_key_or_max_entries_raise() -> None:
    with pytest.raises(TypeError, match="file_key must be bytes, got NoneType"):
        KeyAliases().get(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_entries is 0, it must be at least 1"):
        KeyAliases(0)
    with pytest.raises(TypeError, match="max_entries must be an int"):
        KeyAliases(True)


def add_many(aliases: KeyAliases) -> None:
    for number in range(10, 15):
        aliases.add(key(number), key(8), 2)


@pytest.mark.parametrize("handle", [KeyAliases.clear, add_many, lambda aliases: raise_interrupt()])
@pytest.mark.parametrize(
    "call", [lambda aliases: aliases.get(key(0)), lambda aliases: aliases.add(key(5), key(9), 5)]
)
def test_aliases_with_a_signal_handler_at_any_line_keep_their_limit_and_their_values(
    call: Callable[[KeyAliases], object], handle: Callable[[KeyAliases], object]
) -> None:
    line, is_called = 1, True
    while is_called:
        aliases = KeyAliases(max_entries=3)
        for number in range(3):
            aliases.add(key(number), key(9), 1)
        is_called = interrupt(
            lambda aliases=aliases: call(aliases),
            line,
            {aliases_module.__file__},
            lambda aliases=aliases: handle(aliases),
        )
        found = {number: aliases.get(key(number)) for number in range(15)}
        for number, alias in found.items():
            expected = (
                Alias(key(9), 1) if number < 3 else Alias(key(8), 2) if number > 9 else Alias(key(9), 5)
            )
            assert alias in (None, expected), (line, number)
        other = threading.Thread(target=lambda aliases=aliases: aliases.add(key(6), key(9), 6))
        other.start()
        other.join(60)
        assert aliases.get(key(6)) == Alias(key(9), 6), line
        assert len(aliases) <= 3
        line += 1
    assert line > 4
