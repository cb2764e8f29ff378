"""`run_store`: copies one entry of the cache into one tier."""

from __future__ import annotations

from vitcache.tiers.books import Books
from vitcache.tiers.protocol import EntryName, Transfer
from vitcache.tiers.tier_counts import TierCounts
from vitcache.tiers.tier_engine import TierEngine
from vitcache.tiers.tier_jobs import StoreJob

# How long another process leaves an entry alone that this one has begun to store.
CLAIM_S = 60.0


def run_store(
    job: StoreJob, engine: TierEngine, books: Books, counts: TierCounts, *, may_ask: bool
) -> bool | None:
    """Store an entry, if it is still in the cache and the tier can be used. Runs on the worker's thread.

    An entry that was not stored is offered again at a later hit, unless the tier has it. `may_ask`: whether a
    store may begin.

    Returns whether the tier answered; None: it was not asked.
    """
    if not books.is_current(job.weights):
        counts.add("skipped_stores")  # the rows are of weights that are not named so any more
        books.retract(job)
        return None
    if not may_ask or not engine.is_ready(job.is_probe):
        counts.add("skipped_stores")
        books.retract(job)
        return False if may_ask else None
    rows = books.read(job)
    if rows is None:
        counts.add("skipped_stores")
        books.retract(job)  # it may be there soon: it is being moved, or gets a host copy
        return None
    call = "generation"
    try:
        weights = engine.weights_of(job.weights)
        name = EntryName(job.tenant, weights, job.key, job.num_rows, books.row_bytes(job.row_width))
        call = "claim"
        is_mine = engine.tier.claim([name], CLAIM_S)[0]
        call = "exists"
        is_there = not is_mine and engine.tier.exists([name])[0]
        call = "register"
        engine.register(books.memory)
        call = "store"
        # `read` has leased the rows before this question, so they are rows of these weights.
        is_meant = is_mine and books.is_current(job.weights)
        is_stored = is_meant and engine.tier.store([Transfer(name, rows.parts)])[0]
    except BaseException as error:
        engine.fail(call, error, job.is_probe)
        counts.add("store_failures")
        books.retract(job)
        engine.hold(rows.lease.release, job.num_bytes)
        del rows
        engine.recycle()
        return False
    rows.lease.release()
    if is_stored:
        counts.add("stored")
        counts.add("stored_bytes", job.num_bytes)
        engine.succeed()
    elif is_meant:
        counts.add("store_failures")
        books.retract(job)
    else:
        counts.add("skipped_stores")
        if not is_there:  # another process stores it now, or has died meanwhile
            books.retract(job)
    return True
