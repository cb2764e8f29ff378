"""`output_planes`: the rows of an output, as lazy features or as tensors with memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vitcache.adapters.call_item import CallItem
from vitcache.adapters.lazy_features import planes_of
from vitcache.adapters.lazy_rows import LazyRows
from vitcache.adapters.output_form import OutputForm
from vitcache.adapters.running_call import ThreadState
from vitcache.adapters.session import Session
from vitcache.pages.lease import Lease


def output_planes(
    session: Session,
    form: OutputForm,
    items: Sequence[Tensor | Lease],
    lengths: Sequence[int],
    leases: list[Lease],
    encoded: Sequence[CallItem],
) -> Sequence[Tensor]:
    """Return the features ``(n, hidden)`` of all items, and those of each deepstack level.

    They are lazy if the caller is a forward that may place them, or `generate`. The host does not wait for
    the device.

    Parameters
    ----------
    items, lengths
        The rows of each item in the form's width, and their number.
    leases
        The leases among the items. Lazy features take them over: the list is then empty.
    encoded
        The items that may have to be inserted, beside the rows that stay leased.
    """
    thread = _thread_for_lazy(session, form, encoded)
    if thread is None:
        return form.planes(items, session.cache)
    leases.clear()
    return planes_of(LazyRows(items, lengths, form), thread)


def _thread_for_lazy(session: Session, form: OutputForm, encoded: Sequence[CallItem]) -> ThreadState | None:
    """Return the state of the thread if its caller may get lazy features."""
    placement = session.placement
    if placement is None:
        return None
    call = placement.thread.call
    if not (placement.thread.pre_encodes if call is None else call.allows_writes):
        return None
    if form.mask_in is not None or form.layers or form.device != session.cache.device:
        reason = "the features are padded, for several layers, or on another device than the cache"
    elif 2 in form.levels and placement.has_compiled_language_model():
        reason = "the forward passes deepstack features on to a compiled language model"
    elif encoded and not _has_room(session, form, encoded):
        reason = "the cache is too small for all items of the call"
    else:
        return placement.thread
    session.note_unplaced(reason)
    return None


def _has_room(session: Session, form: OutputForm, encoded: Sequence[CallItem]) -> bool:
    """Whether the rows that are not inserted yet fit beside the rows that stay leased."""
    pending = [item.rows for item in encoded if item.claim is not None and isinstance(item.rows, Tensor)]
    number = sum(map(len, pending))
    return not number or session.cache.has_room(number, row_width=form.width)
