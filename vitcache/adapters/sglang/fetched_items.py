"""`FetchedItems`: the items of a request that waits, whose rows are fetched from the tiers."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from vitcache.adapters.sglang.item_factory import ItemFactory
from vitcache.adapters.sglang.item_keys import ItemKey
from vitcache.adapters.sglang.request_items import known_key, spans_of, store_key
from vitcache.adapters.sglang.tenant import tenant_of
from vitcache.pipeline.items import Chunk, Item
from vitcache.pipeline.prefetch import Prefetch
from vitcache.pipeline.step_keys import known_key as key_of
from vitcache.pipeline.vision_pipeline import VisionPipeline


class FetchedItems:
    """The fetch of the rows of one request: an `Arrival` of `HeldRequests`. One thread uses it.

    Its items are not those of the steps: only a step knows the encoders. The steps get the keys.

    Parameters
    ----------
    inputs
        SGLang's `MultimodalInputs`.
    start, stop
        The tokens that SGLang will compute: items outside of them are not fetched.
    """

    def __init__(
        self, inputs: Any, start: int, stop: int, factory: ItemFactory, pipeline: VisionPipeline
    ) -> None:
        self._pipeline = pipeline
        self._tenant = tenant_of(inputs)
        self._made: list[tuple[Any, Item, ItemKey]] = []
        for source in inputs.mm_items:
            if source is not None and source.precomputed_embeddings is None:
                self._add(source, start, stop, factory)
        self._chunk = Chunk([item for _, item, _ in self._made], start, stop - start)
        self._handle: Prefetch | None = None

    @property
    def are_cached(self) -> bool:
        """Whether no tier needs to be asked: all rows are in the memory of this process."""
        namespace, cache = self._pipeline.namespace, self._pipeline.cache
        keys = [key_of(item, namespace) for _, item, _ in self._made]
        return all(key is not None and key in cache for key in keys)

    @property
    def done(self) -> bool:
        """As in `Arrival`. A pipeline with too many fetches begins this one later."""
        if self._handle is None or self._handle.is_refused:
            try:
                self.begin()
            except RuntimeError:  # the pipeline was closed, such as for another model
                return True
        return self._handle is not None and self._handle.done and not self._handle.is_refused

    def begin(self) -> None:
        """Begin to hash the features and to fetch the rows, on the threads of the pipeline.

        Raises
        ------
        RuntimeError
            If the pipeline is closed.
        """
        self._handle = self._pipeline.prefetch([self._chunk], encode=False)

    def wait(self, timeout_s: float) -> None:
        """As in `Arrival`."""
        if self._handle is not None:
            with suppress(TimeoutError):
                self._handle.wait(timeout_s)

    def finish(self) -> None:
        """As in `Arrival`."""
        for source, item, key in self._made:
            if key.digest is None and item.digest is not None and key.key is None:
                store_key(source, self._tenant, key._replace(digest=item.digest))

    def _add(self, source: Any, start: int, stop: int, factory: ItemFactory) -> None:
        # The step reports items whose offsets or data are wrong.
        with suppress(Exception):
            spans = spans_of(source.offsets)
            if any(span.start < stop and start < span.stop for span in spans):
                made = factory.make_unread(source, spans, self._tenant, known_key(source, self._tenant))
                if made is not None:
                    self._made.append((source, *made))
