"""`AttachStats`: the counts of one attachment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AttachStats:
    """Counts of all calls through one attachment.

    Attributes
    ----------
    encoded
        Items that the vision tower encoded for calls.
    hits
        Items whose rows were read from the cache.
    duplicates
        Items that were equal to an earlier item of the same call.
    bypassed
        Calls that the stock method served, with their arguments unchanged.
    pixel_bytes_moved
        Bytes of pixels that were copied to the tower's device.
    shadowed
        Hits that were encoded again, to be compared with their cached rows.
    shadow_difference
        The largest absolute difference of two elements in these comparisons.
    disabled_calls
        Calls that the stock method served because VITCACHE_DISABLE was set. `bypassed` does not count them.
    placed_calls
        Calls of the forward with items in which the rows of all items were placed: written once, by one
        launch per modality.
    unplaced_calls
        The number of the other calls of the forward with items, by reason: their rows are assembled, and then
        merged by the stock forward. Not counted: calls in functions of torch.compile, and calls in which only
        code outside of transformers, such as the forward of a class of the user, asks for features.
    changes
        The number of changes of the model that were noticed, by kind, such as ``"weights were written"``.
        After a change, no earlier entry is used, or those of the adapters and settings that are set now.

    hit_rate
        Hits per item that was looked up, ``hits / (hits + encoded)``, between 0.0 and 1.0. Without
        such items 0.0. Duplicates within a call are not looked up.

    Examples
    --------
    >>> from vitcache import AttachStats
    >>> AttachStats(encoded=1, hits=3).hit_rate
    0.75

    Notes
    -----
    `==` and the hash leave out `placed_calls`, `unplaced_calls` and `changes`: equal calls have equal counts
    with each `placement`, and a dict has no hash.
    """

    encoded: int = 0
    hits: int = 0
    duplicates: int = 0
    bypassed: int = 0
    pixel_bytes_moved: int = 0
    shadowed: int = 0
    shadow_difference: float = 0.0
    disabled_calls: int = 0
    placed_calls: int = field(default=0, compare=False)
    unplaced_calls: Mapping[str, int] = field(default_factory=dict, compare=False)
    changes: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def hit_rate(self) -> float:
        looked_up = self.hits + self.encoded
        return self.hits / looked_up if looked_up else 0.0
