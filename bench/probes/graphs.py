"""CUDA graphs: the first use of a table under capture, and an update of a table during a replay.

A failed capture may leave the CUDA context unusable, so the probe runs each item in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vitcache import PlacementTable, scatter_embeddings
from vitcache.bench.probes.findings import LEFT_OUT, Finding, Subject

NUM_ROWS, NUM_TOKENS = 4, 8
SLEEP_CYCLES = 200_000_000  # about 100 ms at 2 GHz


def make_scene(subject: Subject) -> tuple[Tensor, Tensor, PlacementTable]:
    """Return rows of ones, a destination of zeros, and a table that places the rows at token 2."""
    hidden = subject.size(4096, 64)
    rows = torch.ones(NUM_ROWS, hidden, dtype=torch.bfloat16, device=subject.device)
    out = torch.zeros(NUM_TOKENS, hidden, dtype=torch.bfloat16, device=subject.device)
    return rows, out, PlacementTable(NUM_TOKENS, device=subject.device).update([rows], [2])


def capture(subject: Subject, body: Callable[[], object]) -> Callable[[], object]:
    """Capture a graph, without a call of `body` before; return its replay. Without a GPU, return `body`."""
    if not subject.on_gpu:
        return body
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph.replay


def is_placed(subject: Subject, out: Tensor, start: int) -> bool:
    """Whether the rows of ones are at `start`, and all other rows are zero."""
    subject.synchronize()
    expected = torch.zeros_like(out)
    expected[start : start + NUM_ROWS] = 1
    return torch.equal(out, expected)


def first_use(subject: Subject) -> Iterator[Finding]:
    """A capture before `warm_up` must be refused with our message; after it, a capture must work."""
    _, out, table = make_scene(subject)

    def place() -> None:
        scatter_embeddings(out, table, None)

    item = "capture before warm_up"
    if subject.on_gpu:
        try:
            capture(subject, place)
            yield Finding.of(item, False, "the capture was not refused")
        except RuntimeError as error:
            yield Finding.of(item, "PlacementTable.warm_up" in str(error), str(error))
        subject.synchronize()
    else:
        yield Finding(item, LEFT_OUT, text="only a GPU captures")
    table.warm_up(out)
    replay = capture(subject, place)
    out.zero_()
    replay()
    yield Finding.of("capture after warm_up", is_placed(subject, out, 2), "values of a replay")


def update_during_replay(subject: Subject) -> Iterator[Finding]:
    """An update while a replay is in flight must be refused, and an update after it must work."""
    rows, out, table = make_scene(subject)
    table.warm_up(out)
    replay = capture(subject, lambda: scatter_embeddings(out, table, None))
    table.update([rows], [3])
    out.zero_()
    item = "update during a replay"
    if subject.on_gpu:
        subject.synchronize()
        torch.cuda._sleep(SLEEP_CYCLES)
        replay()
        try:
            table.update([rows], [1])
            yield Finding.of(item, False, "the update was not refused")
        except RuntimeError as error:
            yield Finding.of(item, "in flight" in str(error), str(error))
    else:
        replay()
        yield Finding(item, LEFT_OUT, text="without a GPU no replay is in flight")
    yield Finding.of("replay after a refused update", is_placed(subject, out, 3), "values of the replay")
    table.update([rows], [1])
    out.zero_()
    replay()
    yield Finding.of("update after a replay", is_placed(subject, out, 1), "values of the next replay")
