"""Random steps: every token is right, only needed items are encoded, and no lease or claim is left."""

from __future__ import annotations

import torch
from caches import make_cache
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pipeline_scene import HIDDEN, Tower, expected, feature, hide_images, make_ids, make_weight

from vitcache import Chunk, Item, Items, PinnedRing, Span, VisionPipeline
from vitcache.testing import inspect

WEIGHT = make_weight()
CONTENTS = 6  # different images
SECONDS = 60


@st.composite
def requests(draw: st.DrawFn) -> Items:
    """A prompt with a few images: in several spans, in part, precomputed, or faulty."""
    items, token = [], draw(st.integers(0, 3))
    for _ in range(draw(st.integers(0, 4))):
        content = draw(st.integers(0, CONTENTS - 1))
        num_rows = 1 + content
        first, spans = draw(st.integers(0, num_rows - 1)), []
        while first < num_rows and len(spans) < 3:
            length = draw(st.integers(1, num_rows - first))
            spans.append(Span(token, length, first))
            first += length
            token += length + draw(st.integers(0, 2))
        kind = draw(st.sampled_from(["tensor", "array", "callable", "unmoved", "key", "rows", "bad"]))
        patches: torch.Tensor = feature(content, num_rows)
        if kind == "rows":
            items.append(Item(None, spans, rows=torch.full((num_rows, HIDDEN), float(content))))
        elif kind == "key":
            items.append(Item(patches, spans, num_rows=num_rows, key=bytes([content]) * 32))
        else:
            value = {
                "tensor": patches,
                "array": patches.numpy(),
                "callable": lambda patches=patches: patches,
                "unmoved": patches,
                "bad": patches,
            }[kind]
            arguments = {"bad": True} if kind == "bad" else {}
            moves = kind != "unmoved"
            items.append(Item(value, spans, num_rows=num_rows, move_feature=moves, **arguments))
        token += draw(st.integers(0, 2))
    return Items(draw(st.permutations(items)))


def refuse_bad(item: Item) -> None:
    if item.encoder_kwargs.get("bad"):
        raise ValueError("bad")


class PipelineMachine(RuleBasedStateMachine):
    """Steps of several requests on one pipeline, with prefetches and new epochs between them."""

    @initialize(
        device_pages=st.integers(1, 12),
        host_pages=st.integers(0, 4),
        max_rows=st.integers(1, 12),
        has_ring=st.booleans(),
        reuses_memory=st.booleans(),
    )
    def open(
        self, device_pages: int, host_pages: int, max_rows: int, has_ring: bool, reuses_memory: bool
    ) -> None:
        self.ring = PinnedRing(1 << 12, backend="host", num_threads=1) if has_ring else None
        self.tower = Tower(fails=refuse_bad, reuses_memory=reuses_memory)
        self.pipeline = VisionPipeline(
            self.tower,
            make_cache(device_pages, host_pages=host_pages),
            ring=self.ring,
            max_rows_per_encode=max_rows,
        )

    @rule(batch=st.lists(st.tuples(requests(), st.integers(0, 12), st.integers(0, 16)), max_size=3))
    def step(self, batch: list[tuple[Items, int, int]]) -> None:
        chunks, offset = [], 0
        for items, start, length in batch:
            chunks.append(Chunk(items, start, length, offset))
            offset += length + 1
        ids = make_ids(offset + 1)
        needed = {
            id(item)
            for chunk in chunks
            for item in chunk.items
            if any(
                max(span.start, chunk.start) < min(span.stop, chunk.start + chunk.length)
                for span in item.spans
            )
        }
        self.tower.calls.clear()
        self.tower.features.clear()
        result = self.pipeline.embed(chunks, hide_images(ids, chunks), WEIGHT)
        bad = [item for chunk in chunks for item in chunk.items if item.encoder_kwargs.get("bad")]
        assert torch.equal(result.inputs_embeds, expected(chunks, ids, WEIGHT, failed=bad)[0])
        failed = [chunks[error.chunk].items[error.item] for error in result.errors]
        assert sorted(map(id, failed)) == sorted(
            id(item)
            for chunk in chunks
            for item in chunk.items
            if item.encoder_kwargs.get("bad") and self.overlaps(item, chunk)
        )
        encoded = self.tower.encoded
        assert {id(item) for item in encoded} <= needed
        for item, found in zip(encoded, self.tower.features, strict=True):
            assert (found is item.feature) == (not item.move_feature)
        for call in self.tower.calls:
            assert len(call) == 1 or sum(item.num_rows for item in call) <= self.pipeline.max_rows_per_encode

    @rule(items=requests(), start=st.integers(0, 12), length=st.integers(0, 16), encode=st.booleans())
    def prefetch(self, items: Items, start: int, length: int, encode: bool) -> None:
        handle = self.pipeline.prefetch([Chunk(items, start, length)], encode=encode)
        handle.wait(SECONDS)
        self.pipeline.cancel(handle)

    @rule()
    def advance(self) -> None:
        self.pipeline.cache.advance_epoch()

    @invariant()
    def no_lease_and_no_claim_is_left(self) -> None:
        self.pipeline.cache.check_integrity()
        assert self.pipeline.cache.stats().leased_pages == 0
        assert inspect(self.pipeline.cache).num_claims == 0
        assert len(self.pipeline._prefetched) == 0

    def teardown(self) -> None:
        if hasattr(self, "pipeline"):
            self.pipeline.close()
            if self.ring is not None:
                self.ring.close()

    @staticmethod
    def overlaps(item: Item, chunk: Chunk) -> bool:
        return any(
            max(span.start, chunk.start) < min(span.stop, chunk.start + chunk.length) for span in item.spans
        )


PipelineMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
test_random_steps_build_every_token_correctly = PipelineMachine.TestCase
