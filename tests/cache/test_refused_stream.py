"""On a stream that the timeline refuses, such as cudaStreamPerThread, writes raise and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from cache_cases import KEYS, make_full, make_rows, present, read

from vitcache import EmbeddingCache
from vitcache.testing import inspect

Refuse = Callable[[EmbeddingCache], AbstractContextManager[None]]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Return a context in which the current stream of a cache's device is refused."""

    @contextmanager
    def refuse(cache: EmbeddingCache) -> Iterator[None]:
        def raise_refusal(*_: object) -> int:
            raise RuntimeError("the current stream is refused")

        with monkeypatch.context() as patch:
            patch.setattr("vitcache.cache.coordinator.check_current_stream", raise_refusal)
            patch.setattr("vitcache.pages.reservation.check_current_stream", raise_refusal)
            patch.setattr(inspect(cache).timeline, "current", raise_refusal)
            yield

    return refuse


@pytest.mark.parametrize(
    "write",
    [
        lambda cache: cache.put(KEYS[5], make_rows(1)),
        lambda cache: cache.put(KEYS[5], make_rows(1), tier="host"),
        lambda cache: cache.put(KEYS[0], make_rows(1, 9.0)),
        lambda cache: cache.reserve(KEYS[5], 2),
        lambda cache: cache.reserve(KEYS[5], 1, contiguous=True),
        lambda cache: cache.expect([2]),
        lambda cache: cache.copy_to_host(KEYS[0]),
        lambda cache: cache.demote(KEYS[0]),
        lambda cache: cache.compact(),
    ],
    ids=["new key", "host", "known key", "reserve", "run", "expect", "copy_to_host", "demote", "compact"],
)
def test_write_on_a_refused_stream_raises_and_evicts_nothing(
    write: Callable[[EmbeddingCache], Any], refused: Refuse
) -> None:
    cache = make_full(2, 1)
    before = present(cache), cache.stats()
    with refused(cache), pytest.raises(RuntimeError, match="the current stream is refused"):
        write(cache)
    assert (present(cache), cache.stats()) == before
    assert torch.equal(read(cache, KEYS[0]), make_rows(1, 0.0))
    cache.check_integrity()
    assert cache.put(KEYS[5], make_rows(1))


@pytest.mark.parametrize("name", ["commit", "commit_lease"])
def test_commit_on_a_refused_stream_raises_and_keeps_the_reservation(name: str, refused: Refuse) -> None:
    cache = make_full(2, 0)
    reservation = cache.reserve(KEYS[5], 2)
    assert reservation is not None
    reservation.write(make_rows(1, 5.0))
    with refused(cache), pytest.raises(RuntimeError, match="the current stream is refused"):
        getattr(reservation, name)()
    assert reservation.commit()
    assert torch.equal(read(cache, KEYS[5]), make_rows(1, 5.0))
    cache.check_integrity()


def test_cancel_on_a_refused_stream_frees_the_pages_once(refused: Refuse) -> None:
    cache = make_full(2, 0)
    reservation = cache.reserve(KEYS[5], 2)
    assert reservation is not None
    reservation.write(make_rows(1, 5.0))
    with refused(cache), pytest.raises(RuntimeError, match="the current stream is refused"):
        reservation.cancel()
    del reservation  # cancelled again by a later call
    assert KEYS[5] not in cache
    assert cache.put(KEYS[5], make_rows(1, 6.0))
    cache.check_integrity()
