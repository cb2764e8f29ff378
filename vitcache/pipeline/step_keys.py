"""The keys of a step's items: given keys with the namespace folded in, and keys hashed on threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import groupby
from operator import itemgetter
from queue import Empty, SimpleQueue
from typing import Any

from vitcache._native import StepPlan, waits_for_jobs
from vitcache.keys.folding import fold_keys, fold_tenant
from vitcache.keys.threads import KeyedFeature, KeyThreads, run_one_here
from vitcache.pipeline.items import Item
from vitcache.pipeline.step_item import Requests, State, StepItem, wait_until_read
from vitcache.tracing import traced

_CHECK_SECONDS = 1.0  # between two reads of the futures of a step that waits


def namespace_of(item: Item, namespace: bytes, tenant: str) -> bytes:
    """Return the namespace of an item's key: that of the pipeline, with the tenant of the item folded in.

    `tenant` is that of the pipeline, which `namespace` has already.
    """
    is_same = item.tenant is None or item.tenant == tenant
    return namespace if is_same else fold_tenant(namespace, item.tenant or "")


def known_key(item: Item, namespace: bytes, tenant: str = "") -> bytes | None:
    """Return an item's key in a namespace, if no feature must be hashed for it; else None.

    This is the item's own key, with the namespace folded in, or the key that was computed before. `tenant` is
    that of the pipeline.
    """
    given, digest = item.key, item.digest
    if given is not None and (item.complete_key or not (namespace or item.tenant)):
        return given
    source = () if given is None else (given,)
    if digest is not None and digest[0] == namespace and digest[2:] == source:
        return digest[1]
    if given is None:
        return None
    [key] = fold_keys([given], namespace_of(item, namespace, tenant))
    item.digest = namespace, key, given
    return key


@traced("key")
def fold_given_keys(requests: Requests, namespace: bytes, tenant: str = "") -> None:
    """Fold a namespace into all given keys of some requests; the items and their arrays store the result.

    `tenant` is that of the pipeline.
    """
    for request in requests:
        unfolded = request.arrays.unfolded(namespace)
        spaces = [namespace_of(request[position], namespace, tenant) for position, _ in unfolded]
        for space, part in groupby(zip(spaces, unfolded, strict=True), key=itemgetter(0)):
            found = [each for _, each in part]
            for (position, given), key in zip(found, fold_keys([g for _, g in found], space), strict=True):
                request.arrays.set_computed(position, namespace, key)
                request[position].digest = namespace, key, given


@traced("key")
def find_keys(
    plan: StepPlan,
    requests: Requests,
    namespace: bytes,
    threads: KeyThreads,
    on_key: Callable[[StepItem], None] = lambda step_item: None,
    tenant: str = "",
) -> list[StepItem]:
    """Find the keys of a plan's items that have none yet, and merge the items that are equal.

    Features are loaded and hashed on `threads`, in parallel and in the order in which the step needs them:
    by chunk, then by first token. The host waits for the keys. The items and the arrays of their requests
    store the keys. An exception becomes the item's error. If the step is interrupted, the items that no
    thread has started are neither loaded nor hashed. If `threads` is closed by another thread, raises
    RuntimeError.

    Parameters
    ----------
    on_key
        Called with each item whose feature was hashed, in the order in which the step needs the items, as
        soon as the keys of this item and of all items before it are known or have failed.
    tenant
        The tenant of the pipeline.

    Returns
    -------
    list of StepItem
        The items whose features were loaded, by their numbers after the merge. Of equal items, the first.
    """
    hashed: list[StepItem] = []
    futures: list[Future[KeyedFeature]] = []
    done: SimpleQueue[Future[KeyedFeature]] = SimpleQueue()
    interrupts: list[BaseException] = []
    try:
        for number in plan.unkeyed():  # in the order in which the step needs the items
            step_item = StepItem.of(plan, requests, number)
            key = known_key(step_item.item, namespace, tenant)
            if key is None:
                hashed.append(step_item)
            else:
                _store_key(plan, requests, namespace, step_item, key)
        spaces = [namespace_of(step_item.item, namespace, tenant) for step_item in hashed]
        for space, part in groupby(zip(spaces, hashed, strict=True), key=itemgetter(0)):
            step_items = [step_item for _, step_item in part]
            loads = [partial(_load, step_item, interrupts) for step_item in step_items]
            extras = [step_item.item.encoder_kwargs for step_item in step_items]
            futures += threads.submit_many(loads, namespace=space, extras=extras, on_done=done.put)
        step_item_of = dict(zip(futures, hashed, strict=True))
        in_order = deque(step_item_of.items())
        while step_item_of:
            future = _next_done(done, step_item_of)
            step_item = step_item_of.pop(future)
            if future.cancelled():  # by `close`, in another thread
                raise RuntimeError("the pipeline was closed")
            try:
                key = future.result().key
            except Exception as error:
                step_item.fail(error)
            else:
                _store_key(plan, requests, namespace, step_item, key)
            while in_order and in_order[0][0] not in step_item_of:
                _, step_item = in_order.popleft()
                if step_item.state is not State.FAILED:
                    on_key(step_item)
    except BaseException as error:
        interrupts.append(error)
        for future in futures:
            future.cancel()
        wait_until_read(hashed)
        raise
    return _renumber(hashed, plan, requests)


def _next_done(
    done: SimpleQueue[Future[KeyedFeature]], unread: Collection[Future[KeyedFeature]]
) -> Future[KeyedFeature]:
    """Wait for one of the unread futures, and return it. Each future is put into `done` once.

    A thread that closes `KeyThreads` may be interrupted after it has cancelled a future and before it has
    put it into `done`. So the futures themselves are read from time to time, too.

    If no future is done for a while, this thread runs the first of them that no thread has started. All key
    threads may load features that wait for this thread: for example, features that call another pipeline,
    whose encoder this thread has. No wait for a turn can refuse that, because no thread runs a job of this
    one yet. Nor can the threads tell a slow feature from such a wait, so the time decides.
    """
    while True:
        try:
            with waits_for_jobs():
                future = done.get(timeout=_CHECK_SECONDS)
            if future in unread:
                return future
        except Empty:
            for future in unread:
                if future.done():
                    return future
            run_one_here(unread)


def _load(step_item: StepItem, interrupts: Sequence[BaseException]) -> Any:
    """Load the feature of an item, unless its step was interrupted.

    The step can be interrupted after it has submitted its items and before it has their futures to cancel.
    """
    if interrupts:
        raise CancelledError
    return step_item.load()


def _store_key(plan: StepPlan, requests: Requests, namespace: bytes, step_item: StepItem, key: bytes) -> None:
    step_item.key = key
    if step_item.item.key is None:
        step_item.item.digest = namespace, key
    for chunk, position in plan.occurrences(step_item.number):
        requests[chunk].arrays.set_computed(position, namespace, key)
    plan.set_key(step_item.number, key)


def _renumber(step_items: Iterable[StepItem], plan: StepPlan, requests: Requests) -> list[StepItem]:
    """Merge the equal items of the plan. Return the first step item of each merged item."""
    numbers = plan.merge()
    first: dict[int, StepItem] = {}
    for step_item in sorted(step_items, key=lambda step_item: step_item.number):
        if numbers:
            step_item.number = numbers[step_item.number]
        kept = first.setdefault(step_item.number, step_item)
        if kept is not step_item and kept.moved is None:
            kept.take_moved(step_item.moved)
    for step_item in first.values():
        step_item.duplicates = StepItem.of(plan, requests, step_item.number).duplicates
    return list(first.values())
