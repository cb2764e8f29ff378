"""The tenant of an item: folded into its key, and the label of its rows in the cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import Tower, embed, feature

from vitcache import (
    Chunk,
    EmbeddingCache,
    Item,
    Items,
    KeyThreads,
    Namespace,
    Span,
    VisionPipeline,
    content_key,
)
from vitcache.keys.folding import fold_keys, fold_tenant

SPACES: dict[str, tuple[bytes | Namespace, str]] = {
    "no namespace": (b"", ""),
    "bytes": (b"model", ""),
    "a tenant": (Namespace("model", tenant="one"), "one"),
}
each_space = pytest.mark.parametrize(("namespace", "own"), SPACES.values(), ids=SPACES)
TENANTS = (None, "", "one", "two")


def make_item(tenant: str | None, is_keyed: bool, first: int = 0, **options: Any) -> Item:
    options |= {"key": bytes([9]) * 32} if is_keyed else {}
    return Item(feature(3, 2), Span(first, 2), tenant=tenant, **options)


@pytest.mark.parametrize("is_keyed", [True, False], ids=["keyed", "hashed"])
@each_space
def test_tenants_share_no_rows_and_a_tenant_hits_its_own(
    namespace: bytes | Namespace, own: str, is_keyed: bool
) -> None:
    tower = Tower()
    with VisionPipeline(tower, make_cache(), namespace=namespace) as pipeline:
        assert pipeline.tenant == own
        for _ in range(2):  # all tenants in one step, then each of them in its own step
            items = [make_item(tenant, is_keyed, 2 * place) for place, tenant in enumerate(TENANTS)]
            assert embed(pipeline, [Chunk(items, 0, 8)], 8) == []
            assert len(tower.encoded) == len({own, "", "one", "two"}) == len(pipeline.cache)
        for tenant in TENANTS:
            item = make_item(tenant, is_keyed)
            assert embed(pipeline, [Chunk([item], 0, 2)], 2) == []
            assert pipeline.key(item) == pipeline.key(make_item(tenant, is_keyed))
            assert pipeline.key(item) in pipeline.cache
        assert len(tower.encoded) == 3


@each_space
def test_the_tenant_of_the_pipeline_changes_no_key(namespace: bytes | Namespace, own: str) -> None:
    with VisionPipeline(Tower(), make_cache(), namespace=namespace) as pipeline:
        keyed, hashed = make_item(own, True), make_item(own, False)
        assert pipeline.key(keyed) == fold_keys([bytes([9]) * 32], namespace)[0]
        assert pipeline.key(hashed) == content_key(feature(3, 2), namespace=namespace, extra={})
        other = make_item("other", True)
        space = fold_tenant(pipeline.namespace, "other")
        assert pipeline.key(other) == fold_keys([bytes([9]) * 32], space)[0]


def test_a_complete_key_is_shared_by_tenants() -> None:
    tower = Tower()
    with VisionPipeline(tower, make_cache(), namespace=b"model") as pipeline:
        for tenant in TENANTS:
            item = make_item(tenant, True, complete_key=True)
            assert embed(pipeline, [Chunk([item], 0, 2)], 2) == []
            assert pipeline.key(item) == bytes([9]) * 32
    assert len(tower.encoded) == 1


def test_forget_tenant_drops_the_rows_of_its_items_whatever_way_they_were_stored() -> None:
    # With 4 pages of the device tier in use, the last rows enter through the host tier.
    cache = make_cache(4, host_pages=8)
    with VisionPipeline(
        Tower(), cache, max_rows_per_encode=4, namespace=Namespace("model", tenant="a")
    ) as one:
        items = [Item(feature(seed, 2), Span(2 * seed, 2), tenant="ab"[seed % 2]) for seed in range(6)]
        assert embed(one, [Chunk(items, 0, 12)], 12) == []
        prefetched = [Item(feature(9, 2), Span(0, 2), tenant="b"), Item(feature(10, 2), Span(2, 2))]
        one.prefetch([Chunk(prefetched, 0, 4)]).wait(60)
        keys = {tenant: [one.key(item) for item in items if item.tenant == tenant] for tenant in "ab"}
        assert all(one.key(item) in cache for item in (*items, *prefetched))
        assert cache.forget_tenant("b") == 4
        assert [key in cache for key in keys["b"]] == [False] * 3
        assert [key in cache for key in keys["a"]] == [True] * 3
        assert one.key(prefetched[0]) not in cache
        assert cache.forget_tenant("a") == 4
        assert len(cache) == 0


def test_a_tenant_of_the_pipeline_that_its_namespace_lacks_is_folded_in() -> None:
    cache: EmbeddingCache = make_cache()
    pipelines = [
        VisionPipeline(Tower(), cache, namespace=namespace, tenant=tenant)
        for namespace, tenant in ((b"model", None), (b"model", ""), (b"model", "a"), (b"model", "b"))
    ]
    keys = [pipeline.key(make_item(None, True)) for pipeline in pipelines]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert keys[2] == pipelines[2].key(make_item("a", True)) == pipelines[0].key(make_item("a", True))
    named = Namespace("model", tenant="a")
    assert VisionPipeline(Tower(), cache, namespace=named, tenant="a").namespace == named.digest()
    for pipeline in pipelines:
        assert embed(pipeline, [Chunk([make_item(None, False)], 0, 2)], 2) == []
    assert cache.forget_tenant("a") == 1
    assert len(cache) == 2


def test_items_keep_their_tenant_in_copies_and_hash_each_feature_once() -> None:
    loads: list[int] = []

    def load() -> torch.Tensor:
        loads.append(1)
        return feature(0, 2)

    request = Items([Item(load, Span(0, 2), tenant="a"), Item(feature(1, 2), Span(2, 2), tenant="b")])
    with VisionPipeline(Tower(), make_cache(), namespace=b"model") as pipeline:
        for _ in range(2):
            pipeline.embed([Chunk(request, 0, 4)], torch.zeros(4, dtype=torch.int64), torch.zeros(1, 4))
        copied = Items(copy.copy(list(request)))
        pipeline.embed([Chunk(copied, 0, 4)], torch.zeros(4, dtype=torch.int64), torch.zeros(1, 4))
    assert loads == [1]
    assert copy.copy(request)[0].tenant == "a"


@pytest.mark.parametrize("tenant", [1, b"a", True])
def test_other_types_of_tenants_are_refused(tenant: Any) -> None:
    with pytest.raises(TypeError, match="tenant must be a str or None, got"):
        Item(None, None, tenant=tenant)
    with pytest.raises(TypeError, match="tenant must be a str or None, got"):
        VisionPipeline(Tower(), make_cache(), tenant=tenant)


def test_key_threads_get_the_items_of_all_tenants_in_the_order_of_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submitted: list[int] = []
    submit_many = KeyThreads.submit_many

    def note(self: KeyThreads, features: Any, **options: Any) -> Any:
        submitted.append(len(features))
        return submit_many(self, features, **options)

    monkeypatch.setattr(KeyThreads, "submit_many", note)
    tenants = ["a", "a", None, "b", "a"]
    items = [Item(feature(n, 2), Span(2 * n, 2), tenant=tenant) for n, tenant in enumerate(tenants)]
    with VisionPipeline(Tower(), make_cache()) as pipeline:
        assert embed(pipeline, [Chunk(items, 0, 10)], 10) == []
    assert submitted == [2, 1, 1, 1]
