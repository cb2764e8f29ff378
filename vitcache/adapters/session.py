"""`Session`: the state of one attachment: model, cache, namespace of the weights, counts."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from vitcache._native import Turn
from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.changes.model_changes import FINGERPRINT, INVALIDATED, ModelChanges
from vitcache.adapters.changes.model_namespace import ModelNamespace
from vitcache.adapters.changes.outer_modules import outer_weights
from vitcache.adapters.disabling import DisabledCalls
from vitcache.adapters.disabling import logger as adapters_logger
from vitcache.adapters.forward_placement import ForwardPlacement
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.locks import new_lock
from vitcache.keys.namespace import Namespace
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.pipeline.shadow import Shadow, logger
from vitcache.ring.pinned_ring import PinnedRing


class _ThreadState(threading.local):
    """Whether the calling thread runs the stock method, to encode an item."""

    encoding = False


class Session:
    """The state that the `CachedEncoder` objects of one attachment share.

    Attributes
    ----------
    attachment
        A weak reference to the `Attachment`. None: it was not made yet.
    tenant
        The tenant whose rows are inserted.
    is_attached
        Whether everything is in the model that `attach` puts into it.
    """

    def __init__(
        self,
        model: nn.Module,
        tower_name: str,
        cache: EmbeddingCache,
        namespace: Namespace,
        ring: PinnedRing | None,
        shadow_every: int,
        make_cache: Callable[[int, torch.dtype], EmbeddingCache] | None = None,
        knows_width: bool = True,
        tenant: str = "",
    ) -> None:
        self.model = model
        self.cache = cache
        self._make_cache = make_cache
        self._knows_width = knows_width
        self.tenant = tenant
        # Until rows of other weights may be stored under the name of the default cache.
        self._names_weights = True
        self._replacement: tuple[int, torch.dtype] | None = None  # width and dtype, until the cache is there
        # A default cache is settled by the first output, of this stock method.
        self.is_settled = make_cache is None
        self.settled_by: str | None = None
        self.first_output = Turn("the first output of the model")
        self.shadow = Shadow(shadow_every, self.note_difference) if shadow_every else None
        self.thread = _ThreadState()
        self.tower_name = tower_name
        self._ring = ring
        self._movers: dict[torch.device, FeatureMover] = {}
        self._lock = new_lock()
        self.state = ModelNamespace(model, tower_name, namespace, outlives=cache.has_lower_tiers)
        self._warned = False
        self.disabled = DisabledCalls("an attached model")
        self._counts: dict[str, Any] = asdict(AttachStats())
        for name in ("disabled_calls", "placed_calls", "unplaced_calls", "changes"):
            del self._counts[name]  # counted by `disabled`, `placement` and `changes`
        self.changes = ModelChanges(type(model).__name__)
        self.placement: ForwardPlacement | None = None
        self.attachment: weakref.ref[object] | None = None
        self.is_attached = False

    @property
    def stats(self) -> AttachStats:
        """A snapshot of the counts."""
        placed, reasons = (0, {}) if self.placement is None else self.placement.counts
        with self._lock:
            counts = dict(self._counts)
        return AttachStats(
            **counts,
            disabled_calls=self.disabled.number,
            placed_calls=placed,
            unplaced_calls=reasons,
            changes=self.changes.counts,
        )

    @property
    def tower(self) -> Any:
        return self.model._modules[self.tower_name]  # `getattr` would take several times as long

    @property
    def config(self) -> Any:
        return self.model.config

    def count(self, **counts: int) -> None:
        """Add to the counts of `stats`."""
        totals = self._counts
        with self._lock:
            for name, number in counts.items():
                totals[name] += number

    def note_unplaced(self, reason: str) -> None:
        """Note why the forward that the thread runs, if any, gets features with memory."""
        if self.placement is not None and self.placement.thread.call is not None:
            self.placement.thread.call.note(reason)

    def note_difference(self, key: bytes, difference: float) -> None:
        """Count a comparison of cached rows with rows that were encoded again; log a difference."""
        with self._lock:
            self._counts["shadowed"] += 1
            self._counts["shadow_difference"] = max(difference, self._counts["shadow_difference"])
        if difference:
            logger.warning(
                "the cached rows of entry %s differ from the rows that the vision tower gives now by up to "
                "%g: call attachment.invalidate() if the model was changed",
                key.hex(),
                difference,
            )

    def is_trainable(self) -> bool:
        """Whether a weight outside of the language model requires gradients."""
        return any(weight.requires_grad for _, weight in outer_weights(self.model))

    def forget(self, kind: str, detail: str = "") -> None:
        """Begin a new, random namespace, because the weights changed or are about to change.

        Any thread may call it. This attachment then finds none of its earlier entries, and shares entries
        with no other attachment. The other attachments keep their entries. The rows of an
        item whose encode has begun are not inserted.

        Parameters
        ----------
        kind, detail
            The kind of the change, and the name of the changed part, for `ModelChanges`.
        """
        if self.state.bytes is not None:
            self.state.bytes.reset()
        self.state.renew()
        self.changes.note(kind, detail)
        if kind in (INVALIDATED, FINGERPRINT) and self._make_cache is not None:
            self._revoke()

    def _revoke(self) -> None:
        """Let no later process find rows of the default cache that were encoded before this call.

        The change of the weights was noticed late: rows of the changed weights may be stored under the name
        of the earlier ones.
        """
        self.complete_cache()
        if self._names_weights and self.cache.has_lower_tiers:
            self._names_weights = False
            self.cache.advance_epoch()

    def begin_namespace(self) -> None:
        """Begin a new, random namespace for each state of the settings."""
        self.state.renew()

    def current_namespace(self) -> bytes:
        """Return the namespace of the model as it is now: of its weights, settings and adapters."""
        for kind, detail in self.state.look():
            self.changes.note(kind, detail)
        if self.state.bytes is not None:
            self.state.bytes.check(self)
        return self.state.value

    @property
    def is_uncacheable(self) -> bool:
        """Whether rows of the model cannot be cached now, at the last call of `current_namespace`.

        The running forward has an adapter per prompt, or a part of the model is in training mode.
        """
        weights = self.state.weights
        if weights.random:
            self._warn_training(f"{type(self.model).__name__}: {weights.random}")
        return bool(weights.mixes_adapters or weights.random)

    def tower_device(self) -> torch.device | None:
        """The device of the tower's weights; None if they are offloaded, because hooks move them.

        This is the device at the last call of `current_namespace`.
        """
        device = self.state.weights.tower_device
        return None if device.type == "meta" else device

    def fit_cache(self, rows: Tensor, method: str) -> bool:
        """Whether the cache can hold the rows that a stock method returned. The first output decides.

        The config does not describe the dtype of each weight, nor the width of the rows of every model. So a
        default cache is replaced if the session's first output does not fit: the old one is closed before,
        so that the budget is exact. Later, and for a cache that the caller gave, nothing is replaced.
        """
        with self._lock:
            if not self.is_settled:
                old = self.cache
                is_divisor = old.row_width % max(rows.shape[1], 1) == 0
                if rows.dtype != old.dtype or not (is_divisor or self._knows_width):
                    self._replace_cache(old.row_width if is_divisor else rows.shape[1], rows.dtype)
                self.settled_by, self.is_settled = method, True
        cache = self.cache
        holds_dtype = cache.dtype in (
            rows.dtype,
            torch.float32,
        )  # float32 holds every value of the narrower ones
        return holds_dtype and cache.row_width % max(rows.shape[1], 1) == 0

    def _replace_cache(self, row_width: int, dtype: torch.dtype) -> None:
        """Close the default cache and make another one; if that fails, make the closed one again."""
        if self._make_cache is None or (self._knows_width and row_width != self.cache.row_width):
            return
        self._replacement = row_width, dtype
        self.complete_cache()

    def complete_cache(self) -> None:
        """Replace the default cache if that has begun: a signal handler may have raised in the middle."""
        make = self._make_cache
        if self._replacement is None or make is None:
            return
        with self._lock:
            if self._replacement is None:
                return
            old = self.cache
            try:
                old.close()
                self.cache = make(*self._replacement)
            except Exception:
                self.cache = make(old.row_width, old.dtype)
                self._replacement = None
                raise
            self._replacement = None

    def warn_training(self) -> None:
        """Log once that calls in training mode are not cached."""
        self._warn_training(type(self.model).__name__)

    def _warn_training(self, name: str) -> None:
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            self.warn(
                f"{name} is in training mode: nothing is cached, because rows are random or each step "
                "changes the weights; call model.eval()"
            )

    def warn(self, message: str) -> None:
        """Log a warning about this attachment."""
        adapters_logger.warning("%s", message)

    def mover_to(self, device: torch.device) -> FeatureMover:
        """Return the `FeatureMover` of `device`. The session has one per device, as the tower may be moved.

        The mover uses the ring that `attach` got if that ring is on `device`, else its own ring.
        """
        with self._lock:
            if device not in self._movers:
                ring = self._ring if self._ring is not None and self._ring.device == device else None
                self._movers[device] = FeatureMover(device, ring, None)
            return self._movers[device]
