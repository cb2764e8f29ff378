"""The keys of a step's items: hashed on threads, unless they are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, as_completed

from vitcache._native import StepPlan
from vitcache.keys.threads import KeyedFeature, KeyThreads
from vitcache.pipeline.items import Item
from vitcache.pipeline.step_item import Requests, StepItem, wait_until_read


def known_key(item: Item, namespace: bytes) -> bytes | None:
    """Return the item's own key, or the key that was computed for it in `namespace`; else None."""
    if item.key is None and item.digest is not None and item.digest[0] == namespace:
        return item.digest[1]
    return item.key


def find_keys(
    plan: StepPlan,
    requests: Requests,
    namespace: bytes,
    threads: KeyThreads,
    on_key: Callable[[StepItem], None] = lambda step_item: None,
) -> list[StepItem]:
    """Find the keys of a plan's items that have none yet, and merge the items that are equal.

    Features are loaded and hashed on `threads`, in parallel; the host waits for the keys. The items and the
    arrays of their requests store the keys. An exception becomes the item's error.

    Parameters
    ----------
    on_key
        Called with each item whose feature was hashed, as soon as its key is known.

    Returns
    -------
    list of StepItem
        The items whose features were loaded, by their numbers after the merge. Of equal items, the first.
    """
    hashed: dict[Future[KeyedFeature], StepItem] = {}
    for number in plan.unkeyed():
        step_item = StepItem.of(plan, requests, number)
        key = known_key(step_item.item, namespace)
        if key is None:
            future = threads.submit(step_item.load, namespace=namespace, extra=step_item.item.encoder_kwargs)
            hashed[future] = step_item
        else:
            _store_key(plan, requests, namespace, step_item, key)
    try:
        for future in as_completed(hashed):
            step_item = hashed[future]
            try:
                key = future.result().key
            except Exception as error:
                step_item.fail(error)
            else:
                _store_key(plan, requests, namespace, step_item, key)
                on_key(step_item)
    except BaseException:
        for future in hashed:
            future.cancel()
        wait_until_read(hashed.values())
        raise
    return _renumber(hashed.values(), plan, requests)


def _store_key(plan: StepPlan, requests: Requests, namespace: bytes, step_item: StepItem, key: bytes) -> None:
    step_item.key = key
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
