"""`EarlyStart`: moves features to the device while other features of the step are still being hashed."""

from __future__ import annotations

from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.pipeline.encoder_runner import EncoderRunner
from vitcache.pipeline.prefetched_features import PrefetchedFeatures
from vitcache.pipeline.step_item import Identity, StepItem


class EarlyStart:
    """Starts to move the feature of an item whose key is known now, if the cache lacks the item.

    The features of one micro-batch are moved early: at most `max_rows` rows, or one item with more rows. If
    the ring does not have enough free bytes for a feature, this feature and all later ones are not moved
    early: the host does not wait. The rows of an item with ``move_feature=False`` count, but its feature is
    not moved. The other features are moved one micro-batch ahead of the encoder, as always, so that they do
    not fill the device's memory. An object serves one step and one thread.
    """

    def __init__(
        self, cache: EmbeddingCache, runner: EncoderRunner, prefetched: PrefetchedFeatures, max_rows: int
    ) -> None:
        self._cache = cache
        self._runner = runner
        self._prefetched = prefetched
        self._rows_left = max_rows
        self._started: set[Identity] = set()

    def __call__(self, step_item: StepItem) -> None:
        """Start to move the feature of `step_item`; an exception becomes the item's error."""
        key, identity = step_item.key, step_item.identity
        if key is None or identity is None or self._rows_left <= 0 or not self._runner.moves_features:
            return
        if identity in self._started or identity in self._prefetched or key in self._cache:
            return
        is_full = bool(self._started) and step_item.num_rows > self._rows_left
        if is_full or (step_item.item.move_feature and not self._runner.start_ahead([step_item])):
            self._rows_left = 0
            return
        # Items whose features do not move are added, too: `encode` would not get the copy of an equal item.
        self._started.add(identity)
        self._rows_left -= step_item.num_rows
