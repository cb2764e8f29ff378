"""`SglangStats`: the steps and items of the plug-in in this process, counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitcache.cache.stats import CacheStats

logger = logging.getLogger("vitcache.adapters.sglang")


@dataclass(frozen=True)
class SglangStats:
    """Counts of one process of SGLang since its start.

    Attributes
    ----------
    steps
        Steps whose rows vitcache has placed.
    encodes
        Items that an encoder of the model has encoded.
    errors
        Items without rows in a step, because they could not be encoded or their offsets are wrong. An item of
        a request that is not ended, or that SGLang retracts, can fail, and count, in several steps.
    ended
        Requests that were ended because of such an item.
    held
        Requests that waited in SGLang's queue while their items were hashed, or fetched from a lower tier.
    late
        Of these, those that no longer waited, because the fetch took too long.
    originals
        Steps that SGLang's own function has computed, by the reason.
    unshared
        Items whose content vitcache could not hash: other requests do not use their rows.
    caches
        The statistics of each model's cache. There is one cache, unless the process has several models with
        encoders.
    """

    steps: int = 0
    encodes: int = 0
    errors: int = 0
    ended: int = 0
    held: int = 0
    late: int = 0
    originals: Mapping[str, int] = field(default_factory=dict)
    unshared: int = 0
    caches: tuple[CacheStats, ...] = ()


# The reasons for which SGLang's own function computes a step, and their texts in the log.
REASONS = {
    "disabled": "VITCACHE_DISABLE is set",
    "pruned_video": "the model prunes rows of videos (EVS) and moves their placeholders",
    "positions": "the positions of the requests in the batch are not known",
    "device": "the rows are on a device that is neither a CUDA device nor the CPU",
    "text_rows": "the text rows are not a dense tensor (tokens, hidden) of float32, float16 or bfloat16",
}


class Counts:
    """Counts steps and items. One thread adds, any thread reads."""

    def __init__(self) -> None:
        self.steps = 0
        self.encodes = 0
        self.errors = 0
        self.ended = 0
        self.held = 0
        self.late = 0
        self.unshared = 0
        self.originals: Counter[str] = Counter()

    def add_original(self, reason: str) -> None:
        """Count a step of SGLang's own function. The first one of each reason is logged as a warning.

        Raises
        ------
        KeyError
            If `reason` is not in `REASONS`.
        """
        text = REASONS[reason]
        self.originals[reason] += 1
        if self.originals[reason] == 1:
            logger.warning(
                "SGLang's own embed_mm_inputs computes a step, without vitcache's cache: %s; further steps "
                "are only counted",
                text,
            )

    def add_unshared(self, source: Any) -> None:
        """Count an item of SGLang whose content has no key. The first one is logged as a warning."""
        self.unshared += 1
        if self.unshared == 1:
            logger.warning(
                "vitcache: other requests cannot use the rows of an item with a feature of type %s and data "
                "%s, which cannot be hashed; if the feature is to blame, trust_engine_hash in "
                "VITCACHE_SGLANG_OPTIONS lets SGLang's 64-bit hash name it. Further items are only counted",
                type(source.feature).__name__,
                {name: type(value).__name__ for name, value in source.model_specific_data.items()},
            )

    def read(self, caches: tuple[CacheStats, ...]) -> SglangStats:
        """Return the counts so far."""
        return SglangStats(
            steps=self.steps,
            encodes=self.encodes,
            errors=self.errors,
            ended=self.ended,
            held=self.held,
            late=self.late,
            originals=dict(self.originals),
            unshared=self.unshared,
            caches=caches,
        )
