"""What files stand for: the last word counts, the oldest goes, and namespaces never meet."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from caches import make_cache

from vitcache import Alias, KeyAliases, Namespace, content_key


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def test_a_file_stands_for_what_was_added_last() -> None:
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


def test_what_was_longest_not_asked_for_goes_first() -> None:
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


def test_threads_keep_the_bound_and_their_aliases_whole() -> None:
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


def test_a_known_file_is_served_without_decoding_it_for_its_own_tenant_and_processor_only() -> None:
    cache, aliases = make_cache(width=8), KeyAliases()
    decoded = []

    def decode(file: bytes) -> np.ndarray:
        decoded.append(file)
        return np.frombuffer(file.lower(), np.uint8)

    def rows(file: bytes, namespace: bytes) -> torch.Tensor:
        file_key = content_key(file, namespace=namespace)
        alias = aliases.get(file_key)
        lease = cache.get(alias.key, num_rows=alias.num_rows) if alias else None
        if lease is None:
            pixels = decode(file)
            item = content_key(pixels, namespace=namespace)
            aliases.add(file_key, item, len(pixels))
            lease = cache.get(item)
            if lease is None:
                fresh = torch.from_numpy(pixels.copy()).float()[:, None].expand(-1, 8)
                cache.put(item, fresh)
                lease = cache.get(item)
        with lease:
            return lease.to_tensor()

    mine, other_processor, other_tenant = (
        Namespace("m", processor=processor, tenant=tenant).digest()
        for processor, tenant in (("p", "me"), ("q", "me"), ("p", "you"))
    )
    first = rows(b"FILE", mine)
    assert torch.equal(rows(b"FILE", mine), first)
    assert decoded == [b"FILE"]
    # Another file of the same pixels: decoded, and served from the same entry.
    assert torch.equal(rows(b"file", mine), first)
    assert (len(decoded), len(cache)) == (2, 1)
    rows(b"FILE", other_processor)
    rows(b"FILE", other_tenant)
    assert (len(decoded), len(cache)) == (4, 3)
    cache.advance_epoch()
    assert torch.equal(rows(b"FILE", mine), first)
    assert len(decoded) == 5


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((b"a", key(1), 1), ValueError, "file_key has 1 bytes, it must have 32"),
        ((key(1), "a", 1), TypeError, "key must be bytes, it is str"),
        ((key(1), key(1) + b"a", 1), ValueError, "key has 33 bytes, it must have 32"),
        ((key(1), key(1), 0), ValueError, "num_rows is 0, it must be at least 1"),
        ((key(1), key(1), 2.0), TypeError, "num_rows must be an int, it is 2.0 of type float"),
    ],
)
def test_a_wrong_alias_is_an_error_and_changes_nothing(
    arguments: tuple[Any, ...], error: type[Exception], match: str
) -> None:
    aliases = KeyAliases()
    with pytest.raises(error, match=match):
        aliases.add(*arguments)
    assert len(aliases) == 0


def test_a_wrong_question_or_bound_is_an_error() -> None:
    with pytest.raises(TypeError, match="file_key must be bytes, it is NoneType"):
        KeyAliases().get(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_entries is 0, it must be at least 1"):
        KeyAliases(0)
    with pytest.raises(TypeError, match="max_entries must be an int"):
        KeyAliases(True)
