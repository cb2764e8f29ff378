"""The counters of vitcache in vLLM: their names and meanings, and an object that collects them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Counter:
    """One counter: a number that only increases.

    Attributes
    ----------
    family
        Name of the metric: counters that differ only in `labels` have one family.
    text
        Meaning of the family.
    unit
        Unit of the values: ``""`` for numbers of events.
    labels
        Names and values of the labels of this counter. Empty: the family has one counter.
    """

    family: str
    text: str
    unit: str = ""
    labels: tuple[tuple[str, str], ...] = ()


def _by(labels: Mapping[str, Sequence[str]], family: str, text: str, unit: str = "") -> dict[str, Counter]:
    return {
        "_".join((family, *values)): Counter(family, text, unit, tuple(zip(labels, values, strict=True)))
        for values in product(*labels.values())
    }


def _one(family: str, text: str, unit: str = "") -> dict[str, Counter]:
    return {family: Counter(family, text, unit)}


_TIERS = {"tier": ("device", "host", "lower")}
# The names of the tiers below the host tier: `DiskTier.name` and `MooncakeTier.name`.
LOWER_TIERS = ("disk", "mooncake")
_LOWER: dict[str, tuple[str, ...]] = {"tier": LOWER_TIERS}
_FETCHES: dict[str, tuple[str, ...]] = {"result": ("hit", "miss", "damaged", "late", "refused", "failed")}
_OVERLAP = {"overlap": ("hidden", "exposed", "placed")}
_TEXT = {"text": ("table", "model")}
# Why vLLM's merge writes the rows of a step: the label, and the reason in words.
MERGE_REASONS = {
    "model": "the architecture is not placed, or vLLM's model state for it is not the default one",
    "model_runner": "Model Runner V1 has no hook for a placement",
    "option": "place_rows is false",
    "pruning": "the model prunes rows of videos",
    "prompt_embeds": "prompt embeddings are enabled",
    "realtime": "the model is a realtime model",
    "context_parallel": "prefill context parallelism splits prompts",
    "vocabulary": "the model cannot look up the ids of placeholders",
}

# Maps the name of each counter, as it travels between vLLM's processes, to its description.
COUNTERS: dict[str, Counter] = {
    **_by(
        _TIERS,
        "hits",
        "Items that a request needed and that were in the cache, by tier; lower: fetched from a tier below "
        "the host tier.",
    ),
    **_by(_TIERS, "hit_bytes", "Bytes of the rows of hits, by tier.", "bytes"),
    **_by(_TIERS, "saved_seconds", "Seconds of encoding that hits saved, by tier.", "s"),
    **_one("encodes", "Items that the vision or audio encoder encoded."),
    **_one("encode_seconds", "Seconds of these encodes.", "s"),
    **_by(
        _OVERLAP,
        "loads",
        "Copies of an entry from the host tier to the device tier; exposed: the model waited for the copy; "
        "placed: the launch that placed the rows made the copy.",
    ),
    **_one("load_bytes", "Bytes of these copies.", "bytes"),
    **_one("load_exposed_seconds", "Seconds that the model waited for exposed and placed copies.", "s"),
    **_by(
        _TEXT,
        "placements",
        "Steps whose rows of items one launch of vitcache placed in inputs_embeds; table: the launch also "
        "wrote the text rows; model: the model wrote them first.",
    ),
    **_one("placed_rows", "Rows that these launches placed."),
    **_by(
        {"reason": tuple(MERGE_REASONS)},
        "merges",
        "Steps whose rows of items vLLM's own merge wrote, by the reason.",
    ),
    **_one(
        "stock_encodes",
        "Steps whose items vLLM encoded in its own batches, because the encoder has LoRA adapters.",
    ),
    **_one("stores", "Entries that were inserted."),
    **_one("store_bytes", "Bytes of the rows of inserted entries.", "bytes"),
    **_one("demotions", "Entries that were demoted from the device tier to the host tier."),
    **_one("evictions", "Entries that were removed from the cache because their pages were needed."),
    **_one(
        "refusals",
        "Items that were to be stored and were not: their step did not encode them, or their rows had an "
        "unexpected shape.",
    ),
    **_one("losses", "Entries that a worker did not find; their requests failed."),
    **_one(
        "deferrals", "Times that a request waited for an item that a worker was storing for another request."
    ),
    **_one("tier_waits", "Requests that waited for a tier below the host tier."),
    **_one("tier_wait_seconds", "Seconds of these waits.", "s"),
    **_by(
        _LOWER | _FETCHES,
        "tier_fetches",
        "Look-ups of entries in a tier below the host tier; late: the answer was not there in time; refused: "
        "the tier was not asked, because it was late or failed before; failed: a call of the tier failed.",
    ),
    **_by(_LOWER, "tier_fetched_bytes", "Bytes of the rows that were read from a tier.", "bytes"),
    **_by(_LOWER, "tier_stores", "Entries that were written to a tier."),
    **_by(_LOWER, "tier_stored_bytes", "Bytes of the rows of these entries.", "bytes"),
    **_by(_LOWER, "tier_store_failures", "Entries that a tier did not store, although it was asked."),
    **_by(
        _LOWER,
        "tier_skipped_stores",
        "Entries that were offered to a tier and had left the cache, or waited.",
    ),
    **_by(
        _LOWER,
        "tier_not_worth",
        "Entries that were not read from a tier, or not written, because the transfer takes too long.",
    ),
    **_by(_LOWER, "tier_fetch_seconds", "Seconds of the calls that read these rows from a tier.", "s"),
    **_by(_LOWER, "tier_openings", "Times that a tier was late or failed, and was not asked for a while."),
    **_one("resets", "Resets of the cache, for example after an update of the weights."),
    **_one("compactions", "Times that entries were moved so that another entry could have adjacent pages."),
}


class Counts:
    """Collects values of `COUNTERS` between two reports. One thread uses it.

    Examples
    --------
    >>> counts = Counts()
    >>> counts.add("encodes")
    >>> counts.add("encode_seconds", 0.0275)
    >>> counts.take()
    {'encodes': 1.0, 'encode_seconds': 0.0275}
    >>> counts.take()
    {}
    """

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def add(self, name: str, value: float = 1.0) -> None:
        """Add `value` to the counter `name`.

        Raises
        ------
        KeyError
            If `name` is not in `COUNTERS`.
        ValueError
            If `value` is negative.
        """
        add_counts(self._values, {name: value})

    def add_all(self, values: Mapping[str, float]) -> None:
        """Add the values of several counters. Raises as `add`, and then adds nothing."""
        add_counts(self._values, values)

    def take(self) -> dict[str, float]:
        """Return the values since the last call, without counters that are 0."""
        values, self._values = self._values, {}
        return values


def add_counts(totals: dict[str, float], values: Mapping[str, float]) -> None:
    """Add `values` to `totals`. Counters that are 0 get no item.

    Raises
    ------
    KeyError
        If a name is not in `COUNTERS`.
    ValueError
        If a value is negative.
    """
    for name, value in values.items():
        if name not in COUNTERS:
            raise KeyError(f"{name!r} is not a counter; counters: {', '.join(COUNTERS)}")
        if not value >= 0:
            raise ValueError(f"{name} is {value}, it must be at least 0")
    for name, value in values.items():
        if value:
            totals[name] = totals.get(name, 0.0) + float(value)
