"""`SourceTable`: rows by key, as the sources of a plan's placement."""

from __future__ import annotations

import pytest
import torch
from caches import make_cache

from vitcache import Chunk, Item, Span
from vitcache._native import SourceTable, StepPlan, read_requests
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.placement.scatter_call import ScatterCall

WIDTH = 4


def key(number: int) -> bytes:
    return bytes([number]) * 32


def test_placement_reads_the_rows_of_the_table_and_the_rest_from_python() -> None:
    cache = make_cache(8, width=WIDTH, page_rows=2)
    rows = torch.randn(3, WIDTH)
    cache.put(key(1), rows)
    lease = cache.get(key(1))
    assert lease is not None
    table = SourceTable()
    table.set(key(1), lease.paged_rows)
    items = [Item(None, Span(4 * number, 3), key=key(number)) for number in (0, 1)]
    chunks = [Chunk(items, 0, 8)]
    plan = StepPlan(chunks, read_requests(chunks, Chunk), b"", 8)
    inputs_embeds = torch.full((8, WIDTH), 9.0)
    call = ScatterCall(inputs_embeds, None, None)
    native = plan.make_placement()
    missing = table.add_sources(plan, native, call.destination.native)
    assert missing == [0]
    other = torch.randn(3, WIDTH)
    call.run_placed(Placement.from_native(call.destination, native, [other, lease], missing))
    assert torch.equal(inputs_embeds[:3], other)
    assert torch.equal(inputs_embeds[4:7], rows)
    assert (inputs_embeds[[3, 7]] == 9).all()


def test_key_is_replaced_removed_and_checked() -> None:
    cache = make_cache(8, width=WIDTH, page_rows=2)
    leases = []
    for number in (1, 2):
        cache.put(key(number), torch.randn(number, WIDTH))
        leases.append(cache.get(key(number)))
    table = SourceTable()
    for lease in leases:
        table.set(key(5), lease.paged_rows)
    assert len(table) == 1
    chunks = [Chunk([Item(None, Span(0, 2), key=key(5))], 0, 4)]
    plan = StepPlan(chunks, read_requests(chunks, Chunk), b"", 4)
    destination = Destination("inputs_embeds", torch.zeros(4, WIDTH), None)
    assert table.add_sources(plan, plan.make_placement(), destination.native) == []
    assert table.remove(key(5))
    assert not table.remove(key(5))
    with pytest.raises(ValueError, match="31"):
        table.remove(bytes(31))
