"""Calls of a cache, its leases, reservations and claims."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from caches import make_cache

from public_calls.call import Call, Valid
from vitcache import EmbeddingCache, WriteBack
from vitcache.tiers import MemoryTier

KEYS = [bytes([number]) * 32 for number in range(4)]


def filled(stack: ExitStack) -> EmbeddingCache:
    """A cache with one entry in both tiers."""
    cache = stack.enter_context(make_cache(8, 8, record_evictions=4))
    cache.put(KEYS[0], torch.ones(2, 4), tier="both")
    return cache


def construct(stack: ExitStack) -> Call:
    def make(**given: Any) -> None:
        EmbeddingCache(**given).close()

    return make, {
        "row_width": 4,
        "dtype": torch.float32,
        "device": "cpu",
        "device_bytes": 4096,
        "host_bytes": 4096,
        "page_rows": 2,
        "policy": "lru",
        "checksum": False,
        "record_evictions": 0,
        "tiers": [MemoryTier(1 << 20)],
        "weights_name": "weights",
        "write_back": WriteBack(),
        "fetch_timeout_s": 0.1,
    }


def method(name: str, **arguments: Any) -> Valid:
    """A call of a method of the cache."""
    return lambda stack: (getattr(filled(stack), name), dict(arguments))


def promote(stack: ExitStack) -> Call:
    cache = filled(stack)
    cache.discard(KEYS[0])
    cache.put(KEYS[1], torch.ones(2, 4), tier="host")
    lease = cache.get(KEYS[1])
    assert lease is not None
    stack.enter_context(lease)
    return cache.promote, {"lease": lease, "contiguous": False}


def write(stack: ExitStack) -> Call:
    reservation = filled(stack).reserve(KEYS[1], 2)
    assert reservation is not None
    stack.enter_context(reservation)
    return reservation.write, {"rows": torch.ones(2, 4)}


def claim_method(name: str, **arguments: Any) -> Valid:
    """A call of a method of a claim."""
    return lambda stack: (
        getattr(stack.enter_context(filled(stack).claim(KEYS[1])), name),
        dict(arguments),
    )


def wait_for_claim(stack: ExitStack) -> Call:
    cache = filled(stack)
    claim = stack.enter_context(cache.claim(KEYS[1]))
    claim.release()
    return claim.wait, {"timeout_s": 0.1}


ROWS = torch.ones(2, 4)

CALLS: dict[str, Valid] = {
    "EmbeddingCache": construct,
    "EmbeddingCache.put": method(
        "put", key=KEYS[1], rows=ROWS, epoch=None, encode_ms=1.0, tier="device", tenant="one"
    ),
    "EmbeddingCache.get": method("get", key=KEYS[0], num_rows=2, row_width=None),
    "EmbeddingCache.get_many": method("get_many", keys=KEYS[:2], num_rows=2, row_width=None),
    "EmbeddingCache.__contains__": method("__contains__", key=KEYS[0]),
    "EmbeddingCache.discard": method("discard", key=KEYS[0], tier=None),
    "EmbeddingCache.forget": method("forget", key=KEYS[0], timeout_s=1.0),
    "EmbeddingCache.forget_tenant": method("forget_tenant", tenant="one", timeout_s=1.0),
    "EmbeddingCache.clear": method("clear", weights_name="new"),
    "EmbeddingCache.advance_epoch": method("advance_epoch", weights_name="new"),
    "EmbeddingCache.begin_fetch": method(
        "begin_fetch", keys=KEYS[:2], num_rows=2, row_width=None, tenant="one", evict=True
    ),
    "EmbeddingCache.fetch": method(
        "fetch", keys=KEYS[:2], num_rows=2, row_width=None, tenant="one", timeout_s=0.1
    ),
    "EmbeddingCache.flush": method("flush", timeout_s=1.0),
    "Fetch.wait": lambda stack: (filled(stack).begin_fetch(KEYS[:2], 2).wait, {"timeout_s": 0.1}),
    "WriteBack": lambda stack: (
        WriteBack,
        {"hits": 2, "encode_ms": 50.0, "queue_bytes": "1MiB", "from_device": True},
    ),
    "EmbeddingCache.pages_for": method("pages_for", num_rows=2, width=None),
    "EmbeddingCache.has_room": method("has_room", num_rows=2, row_width=None),
    "EmbeddingCache.expect": method("expect", num_rows=[2], row_width=None),
    "EmbeddingCache.reserve": method(
        "reserve",
        key=KEYS[1],
        num_rows=2,
        row_width=None,
        epoch=None,
        encode_ms=1.0,
        contiguous=False,
        tenant="one",
    ),
    "EmbeddingCache.promote": promote,
    "EmbeddingCache.copy_to_host": method("copy_to_host", key=KEYS[0]),
    "EmbeddingCache.demote": method("demote", key=KEYS[0]),
    "EmbeddingCache.evict": method("evict", key=KEYS[0]),
    "EmbeddingCache.offer": method("offer", key=KEYS[0]),
    "EmbeddingCache.claim": method("claim", key=KEYS[1]),
    "Reservation.write": write,
    "Claim.put": claim_method("put", rows=ROWS, encode_ms=1.0, tier="device", tenant="one"),
    "Claim.reserve": claim_method("reserve", num_rows=2, encode_ms=1.0, row_width=None, tenant="one"),
    "Claim.wait": wait_for_claim,
}
