"""Handles: none can be copied or pickled, and their reprs are short, true and never raise."""

from __future__ import annotations

import copy
import enum
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("prometheus_client")

from tiny_models import FAMILIES

import vitcache
from vitcache import (
    Chunk,
    DiskTier,
    EmbeddingCache,
    Item,
    Items,
    KeyAliases,
    KeyThreads,
    MooncakeTier,
    PinnedRing,
    PlacementTable,
    Reservation,
    Shadow,
    Span,
    VisionPipeline,
    _native,
    attach,
)
from vitcache.adapters.transformers import ChunkedPrefill, vision_pipeline
from vitcache.handles import describe_use
from vitcache.metrics import CacheCollector
from vitcache.pages.host_reservation import HostReservation

KEYS = [bytes([number]) * 32 for number in range(4)]
COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
}
PUBLIC_MODULES = ("vitcache", "vitcache.adapters.transformers", "vitcache.metrics")
ENDINGS = {"release", "close", "detach", "cancel", "commit", "synchronize", "reset", "update", "wait"}
NAMES = (
    *("Attachment", "CacheCollector", "ChunkedPrefill", "Claim", "Conversation", "DiskTier", "Fetch"),
    "EmbeddingCache",
    *(
        "KeyAliases",
        "KeyThreads",
        "Lease",
        "MooncakeTier",
        "PinnedRing",
        "PlacementTable",
        "Prefetch",
        "Reservation",
    ),
    *("Shadow", "Ticket", "VisionPipeline"),
)


@pytest.fixture(scope="module")
def handles() -> Iterator[dict[str, Any]]:
    """One object of each class of `NAMES`, by the name of its class."""
    with ExitStack() as stack:
        cache = stack.enter_context(make_cache())
        cache.put(KEYS[0], torch.ones(1, 2))
        ring = stack.enter_context(PinnedRing(1 << 20, num_threads=1, backend="host"))
        ticket = ring.copy_to(torch.zeros(4), torch.ones(4))
        ticket.synchronize()
        pipeline = stack.enter_context(VisionPipeline(lambda features, items: features, cache))
        prefetch = pipeline.prefetch([])
        prefetch.wait(60)
        model = FAMILIES["qwen3_vl"].model()
        reader = stack.enter_context(vision_pipeline(model))
        driver = ChunkedPrefill(model, reader)
        yield {
            type(handle).__name__: handle
            for handle in (
                *(cache, ring, ticket, pipeline, prefetch, driver, driver.conversation),
                stack.enter_context(cache.get(KEYS[0])),
                stack.enter_context(cache.reserve(KEYS[1], 1)),
                stack.enter_context(cache.claim(KEYS[3])),
                stack.enter_context(KeyThreads(1)),
                stack.enter_context(attach(model)),
                *(KeyAliases(), PlacementTable(4, device="cpu"), Shadow(10, print), CacheCollector(cache)),
                *(DiskTier("folder", "1MiB"), MooncakeTier("127.0.0.1:50051")),
                cache.begin_fetch(KEYS[:1], 1),
            )
        }


def make_cache() -> EmbeddingCache:
    return EmbeddingCache(
        2, dtype=torch.float32, device="cpu", device_bytes=1 << 12, host_bytes=1 << 12, page_rows=2
    )


def public_classes() -> dict[str, type]:
    found = {}
    for name in PUBLIC_MODULES:
        module = import_module(name)
        values = (getattr(module, public) for public in module.__all__)
        found.update({value.__name__: value for value in values if isinstance(value, type)})
    return found


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", NAMES)
def test_copy_of_a_handle_is_refused_and_says_what_to_do(
    handles: dict[str, Any], name: str, how: str
) -> None:
    with pytest.raises(TypeError, match=f"objects of {name} cannot be copied or pickled: ."):
        COPIES[how](handles[name])


def test_every_public_class_that_is_released_or_closed_is_in_the_list() -> None:
    classes = public_classes()
    ended = {name for name, value in classes.items() if ENDINGS & set(dir(value))}
    assert ended <= set(NAMES)
    assert {"Lease", "Reservation", "Claim", "EmbeddingCache", "Attachment", "PinnedRing"} <= ended


def test_every_class_that_refuses_copies_is_in_the_list(handles: dict[str, Any]) -> None:
    assert set(handles) == set(NAMES)


@pytest.mark.parametrize("how", COPIES)
def test_copy_of_a_native_object_is_refused(how: str) -> None:
    for value in vars(_native).values():
        # Enums are values. Classes without `__new__` are made by native code only.
        if isinstance(value, type) and not issubclass(value, enum.Enum) and not hasattr(value, "__members__"):
            try:
                made = value.__new__(value)
            except TypeError:
                assert value is _native.LeaseBase
                continue
            with pytest.raises(TypeError, match="cannot pickle"):
                COPIES[how](made)


def test_host_reservation_refuses_copies_as_a_reservation_does() -> None:
    assert issubclass(HostReservation, Reservation)
    assert HostReservation.__reduce_ex__ is Reservation.__reduce_ex__


def test_copy_that_was_refused_releases_nothing() -> None:
    with make_cache() as cache:
        cache.put(KEYS[0], torch.ones(1, 2))
        with cache.get(KEYS[0]) as lease:
            for attempt in COPIES.values():
                with pytest.raises(TypeError):
                    attempt(lease)
            assert cache.stats().leased_pages == 1
            assert lease.to_tensor().tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("name", NAMES)
def test_repr_of_a_handle_is_one_short_line_with_the_name_of_its_class(
    handles: dict[str, Any], name: str
) -> None:
    text = repr(handles[name])
    assert text.startswith(f"<{name} ")
    assert len(text) < 160
    assert "\n" not in text


@pytest.mark.parametrize("name", sorted({*NAMES, "Item", "Items", "Chunk"} - {"Lease"}))
def test_repr_of_an_object_whose_init_was_interrupted_says_so(handles: dict[str, Any], name: str) -> None:
    value = {"Item": Item, "Items": Items, "Chunk": Chunk}.get(name) or type(handles[name])
    made = value.__new__(value)
    assert repr(made) == f"<{name} not initialized>"


def test_repr_of_a_cache_shows_entries_bytes_and_hit_rate_until_it_is_closed() -> None:
    with EmbeddingCache(
        256, dtype=torch.float32, device="cpu", device_bytes="4MiB", host_bytes="16MiB", page_rows=1024
    ) as cache:
        assert repr(cache).endswith("0 entries, device 0.0 of 4.0 MiB, host 0.0 of 16 MiB, no look-ups>")
        cache.put(KEYS[0], torch.zeros(1024, 256))
        for key in (KEYS[0], KEYS[0], KEYS[0], KEYS[1]):
            if lease := cache.get(key):
                lease.release()
        expected = "1 entry, device 1.0 of 4.0 MiB, host 0.0 of 16 MiB, hit rate 0.75"
        assert repr(cache) == f"<EmbeddingCache {expected}>"
        assert cache.stats().hit_rate == 0.75
    assert repr(cache) == "<EmbeddingCache closed>"
    with pytest.raises(RuntimeError):
        cache.stats()


def test_repr_of_a_handle_that_was_ended_says_so() -> None:
    cache = make_cache()
    cache.put(KEYS[0], torch.ones(1, 2))
    lease, reservation = cache.get(KEYS[0]), cache.reserve(KEYS[1], 1)
    assert lease is not None
    assert reservation is not None
    claim, second = cache.claim(KEYS[1]), cache.claim(KEYS[1])
    assert [repr(each).split(", ")[-1] for each in (claim, second)] == ["owner>", "waits for the owner>"]
    assert repr(lease) == "<Lease 1 row of 2, torch.float32, device tier>"
    for handle in (lease, claim):
        handle.release()
    reservation.cancel()
    ring = PinnedRing(1 << 20, num_threads=1, backend="host")
    with ring.hold():
        ticket = ring.copy_to(torch.zeros(1 << 17), torch.ones(1 << 17))
        ticket.synchronize()
        assert repr(ring) == "<PinnedRing cpu, 0.5 of 1.0 MiB in use, 1 thread>"
    pipeline, threads = VisionPipeline(lambda features, items: features, cache), KeyThreads(2)
    for handle in (ring, pipeline, threads, cache):
        handle.close()
    assert [repr(each) for each in (lease, reservation, ticket, ring, pipeline, threads, cache)] == [
        "<Lease released>",
        "<Reservation committed or cancelled>",
        "<Ticket done>",
        "<PinnedRing closed>",
        "<VisionPipeline closed>",
        "<KeyThreads 2 threads, closed>",
        "<EmbeddingCache closed>",
    ]
    assert [repr(each).split(", ")[-1] for each in (claim, second)] == ["released>", "released>"]


def test_with_block_of_a_closed_handle_raises() -> None:
    cache = make_cache()
    ring = PinnedRing(1 << 20, num_threads=1, backend="host")
    handles = (VisionPipeline(lambda features, items: features, cache), ring, KeyThreads(1), cache)
    for handle in handles:
        with handle as entered:
            assert entered is handle
        with pytest.raises(RuntimeError, match="close"), handle:
            pytest.fail("the block of a closed handle runs")


def test_repr_of_items_shows_rows_spans_and_tokens() -> None:
    video = Item(torch.zeros(1), [Span(5, 4), Span(20, 4, source_start=4)])
    assert repr(video) == "<Item Tensor, 8 rows in 2 spans, tokens [5, 24)>"
    assert repr(Item(None, None, num_rows=1)) == "<Item NoneType, 1 row, no spans>"
    assert repr(Items([video, video])) == "<Items 2 items, 16 rows>"
    assert repr(Chunk([video], 8, 8)) == "<Chunk tokens [8, 16), 1 item, at token 0 of the batch>"


@pytest.mark.parametrize(
    ("used", "capacity", "text"),
    [
        (3_328_599_654, 4 << 30, "3.1 of 4.0 GiB"),
        (9 << 30, 16 << 30, "9.0 of 16 GiB"),
        (0, 512 << 20, "0.0 of 512 MiB"),
        (40, 64, "40 of 64 bytes"),
    ],
)
def test_describe_use_shows_both_sizes_in_the_unit_of_the_limit(used: int, capacity: int, text: str) -> None:
    assert describe_use(used, capacity) == text


def test_hit_rate_without_lookups_is_zero() -> None:
    with make_cache() as cache:
        assert cache.stats().hit_rate == 0.0
    assert vitcache.AttachStats().hit_rate == 0.0
