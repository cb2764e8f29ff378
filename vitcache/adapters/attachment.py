"""`Attachment`: the connection of a model to a cache, made by `attach`."""

from __future__ import annotations

import weakref

from torch import nn

from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.cached_encoder import CachedEncoder
from vitcache.adapters.changes.model_changes import INVALIDATED
from vitcache.adapters.changes.optimizer_steps import unwatch_optimizers, watch_optimizers
from vitcache.adapters.replaced_methods import restore
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
        session.attachment = weakref.ref(self)
        try:
            watch_optimizers(session)
            for name, encoder in encoders.items():
                setattr(session.model, name, encoder)
            if session.placement is not None:
                session.placement.install()
            session.is_attached = True
        except BaseException:
            detach(session)
            raise

    @property
    def cache(self) -> EmbeddingCache:
        """The cache. It stays open after `detach`."""
        self._session.complete_cache()
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
            if vars(model).get(name, encoder) not in (encoder, encoder.earlier):
                raise RuntimeError(f"{name} was replaced after attach: remove the replacement before detach")
        detach(self._session)
        self._encoders = {}

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


def detach(session: Session) -> None:
    """Remove everything that `attach` put into a model. A call after an interrupted one does the rest."""
    session.is_attached = False
    model = session.model
    if session.placement is not None:
        session.placement.remove()
    for name, encoder in list(vars(model).items()):
        if isinstance(encoder, CachedEncoder) and encoder.session is session:
            restore(model, name, encoder.earlier)
    unwatch_optimizers(session)  # last: as long as the model is attached, each step of an optimizer counts


def detach_lost(model: nn.Module) -> bool:
    """Detach a model that an interrupted `attach` or `detach` left half attached.

    A model is detached, too, if it is attached and its `Attachment` was freed, as no object is left to
    detach it.

    Returns
    -------
    bool
        False if the model is attached, and its `Attachment` is alive.
    """
    for encoder in list(vars(model).values()):
        if isinstance(encoder, CachedEncoder):
            session = encoder.session
            if session.is_attached and session.attachment is not None and session.attachment() is not None:
                return False
            detach(session)
    return True
