"""`Attachment`: the connection of a model to a cache, made by `attach`."""

from __future__ import annotations

from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.cached_encoder import CachedEncoder
from vitcache.adapters.changes.model_changes import INVALIDATED
from vitcache.adapters.changes.optimizer_steps import unwatch_optimizers, watch_optimizers
from vitcache.adapters.session import Session
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.handles import describe_count, described, refuse_copies


class Attachment:
    """The connection of a model to a cache, made by `attach` and ended by `detach`.

    An attachment is a context manager: on exit, the model is detached. It cannot be copied or pickled; copies
    of the model are not attached.

    Examples
    --------
    `model` is a Qwen2.5-VL in eval mode. `inputs` are the outputs of its processor.
    The prompt has one image.

    >>> import torch, vitcache
    >>> attachment = vitcache.attach(model)
    >>> with torch.no_grad():
    ...     output = model(**inputs)
    >>> attachment.stats().encoded, len(attachment.cache)
    (1, 1)
    >>> attachment.detach()
    >>> len(attachment.cache)  # the cache stays usable
    1
    """

    def __init__(self, session: Session, encoders: dict[str, CachedEncoder]) -> None:
        self._session = session
        self._encoders = encoders
        self._replaced = {name: vars(session.model)[name] for name in encoders if name in vars(session.model)}
        for name, encoder in encoders.items():
            setattr(session.model, name, encoder)
        watch_optimizers(session)

    @property
    def cache(self) -> EmbeddingCache:
        """The cache. It stays open after `detach`."""
        return self._session.cache

    def stats(self) -> AttachStats:
        """Return a snapshot of the counts of the calls. `cache.stats()` has the counts of the cache."""
        return self._session.stats

    def invalidate(self) -> None:
        """Use no earlier entry again. Call it after a change of the weights that `attach` cannot notice.

        docs/changes.md lists these changes. Calls that began before may return rows of the old weights; later
        calls do not find them. Other attachments that use the same cache keep their entries, and this
        attachment no longer shares entries with them. The old entries stay in the cache until it needs their
        pages; `cache.advance_epoch` frees them at once, for all attachments of the cache.

        Any thread may call it, also while the model runs.

        Examples
        --------
        `model` is a Qwen2.5-VL in eval mode. `inputs` are the outputs of its processor.
        The prompt has one image.

        >>> import torch, vitcache
        >>> attachment = vitcache.attach(model)
        >>> with torch.no_grad():
        ...     output = model(**inputs)
        ...     weight = next(model.model.visual.parameters())
        ...     _ = weight.data.copy_(2 * weight)  # `attach` cannot notice a write through `.data`
        ...     attachment.invalidate()
        ...     output = model(**inputs)
        >>> attachment.stats().encoded
        2
        >>> attachment.detach()
        """
        self._session.forget(INVALIDATED)

    def detach(self) -> None:
        """Restore the stock methods. Call `detach` while no call of the model runs.

        The cache stays open, with its entries. A second call does nothing.

        Raises
        ------
        RuntimeError
            If a stock method of the model was replaced again after `attach`. Remove that replacement first;
            until then the model stays attached.
        """
        model = self._session.model
        for name, encoder in self._encoders.items():
            if vars(model).get(name, encoder) is not encoder:
                raise RuntimeError(f"{name} was replaced after attach: remove the replacement before detach")
        for name in self._encoders:
            vars(model).pop(name, None)  # a caller may have deleted it
        if self._session.placement is not None:
            self._session.placement.remove()
        for name, method in self._replaced.items():
            setattr(model, name, method)
        unwatch_optimizers(self._session)
        self._encoders = {}
        self._replaced = {}

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    __reduce_ex__ = refuse_copies("copy the model, and attach the copy")

    @described
    def __repr__(self) -> str:
        name = type(self._session.model).__name__
        if not self._encoders:
            return f"{name}, detached"
        stats = self.stats()
        has_lookups = stats.hits + stats.encoded > 0
        rate = f"hit rate {stats.hit_rate:.2f}" if has_lookups else "no look-ups"
        modalities = ", ".join(sorted(encoder.modality for encoder in self._encoders.values()))
        hits = describe_count(stats.hits, "hit")
        return f"{name}, {modalities}, {stats.encoded} encoded, {hits}, {rate}"
