"""The fences that leases and reservations record and wait for, with a timeline that records its calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

import pytest
import torch

from vitcache.device.streams import Fence
from vitcache.pages.entry import Entry
from vitcache.pages.lease import CacheHandle, Lease, ReleaseQueue, use_all
from vitcache.pages.pending import PendingCopies, PendingWrite
from vitcache.pages.pool import PagePool
from vitcache.pages.reservation import AbandonedWrite, Reservation, WriteResult, join

CPU = torch.device("cpu")


class RecordingTimeline:
    """A timeline whose current stream is set by the test."""

    copy_stream: Hashable = "copies"

    def __init__(self) -> None:
        self.stream: Hashable = "a"
        self.waits: list[tuple[Hashable, Fence]] = []  # (waiting stream, fence)
        self.recorded: list[Fence] = []
        self.releases = ReleaseQueue()

    def current(self) -> Hashable:
        return self.stream

    def record(self, stream: Hashable) -> Fence:
        self.recorded.append(Fence(stream, len(self.recorded)))
        return self.recorded[-1]

    def wait(self, fence: Fence) -> None:
        self.waits.append((self.stream, fence))

    def synchronize(self) -> None:
        self.waits.append((self.stream, Fence("all", None)))


WRITTEN = Fence("writer", "written")


@pytest.fixture
def timeline() -> RecordingTimeline:
    return RecordingTimeline()


@pytest.fixture
def pool() -> PagePool:
    return PagePool("device", 4, 2, 3, torch.float32, CPU)


def make_lease(timeline: RecordingTimeline, pool: PagePool) -> Lease:
    pages, _ = pool.allocate(2)
    entry = Entry(b"k" * 32, 3, 1.0, pool, pages, WRITTEN)
    return Lease([entry], CacheHandle(CPU, timeline, timeline.releases))  # type: ignore[arg-type]


def test_use_waits_once_per_stream_for_the_write(timeline: RecordingTimeline, pool: PagePool) -> None:
    lease = make_lease(timeline, pool)
    for stream in ("a", "a", "b"):
        timeline.stream = stream
        lease.use()
    assert timeline.waits == [("a", WRITTEN), ("b", WRITTEN)]


def test_use_on_the_writing_stream_does_not_wait(timeline: RecordingTimeline, pool: PagePool) -> None:
    timeline.stream = "writer"
    lease = make_lease(timeline, pool)
    lease.use()
    assert timeline.waits == []
    [[_, streams]] = released(timeline, lease)
    assert streams == {"writer"}


def released(timeline: RecordingTimeline, lease: Lease) -> list[tuple[Entry, frozenset[Hashable]]]:
    lease.release()
    return timeline.releases.take()


def test_release_names_every_stream_that_read(timeline: RecordingTimeline, pool: PagePool) -> None:
    lease = make_lease(timeline, pool)
    for stream in ("a", "b"):
        timeline.stream = stream
        lease.use()
    [[entry, streams]] = released(timeline, lease)
    assert (entry.num_rows, streams) == (3, {"a", "b"})
    assert released(timeline, lease) == []  # a second release does nothing
    unused = make_lease(timeline, pool)
    assert [streams for _, streams in released(timeline, unused)] == [frozenset()]


def test_use_all_waits_for_each_lease_and_raises_for_a_released_one(
    timeline: RecordingTimeline, pool: PagePool
) -> None:
    first, second = make_lease(timeline, pool), make_lease(timeline, pool)
    use_all([first, second])
    assert timeline.waits == [("a", WRITTEN)] * 2
    second.release()
    with pytest.raises(RuntimeError, match="released"):
        use_all([first, second])


class FinishRecorder:
    """A `FinishWrite` that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Fence | None, bool]] = []

    def __call__(self, pending: PendingWrite, fence: Fence | None, *, failed: bool) -> WriteResult:
        self.calls.append((fence, failed))
        return WriteResult(not failed, 0, 0)


COPIED = Fence("copies", "copied")


@pytest.fixture
def finish() -> FinishRecorder:
    return FinishRecorder()


@pytest.fixture
def reservation(timeline: RecordingTimeline, pool: PagePool, finish: FinishRecorder) -> Reservation:
    pages, _ = pool.allocate(2)
    pending = PendingWrite(0, b"k" * 32, 3, 1.0, pool, pages, (), PendingCopies([], {COPIED}))
    abandoned: deque[AbandonedWrite] = deque()
    return Reservation(pending, CPU, timeline, finish, abandoned)  # type: ignore[arg-type]


def test_first_write_waits_for_the_copies_and_the_next_stream_for_it(
    reservation: Reservation, timeline: RecordingTimeline
) -> None:
    reservation.write(torch.ones(3, 3))
    assert timeline.waits == [("a", COPIED)]
    timeline.stream = "b"
    reservation.use()
    reservation.use()
    assert timeline.waits[1:] == [("b", timeline.recorded[0])]
    assert timeline.recorded[0].stream == "a"


def test_commit_fence_is_behind_every_stream_that_wrote(
    reservation: Reservation, timeline: RecordingTimeline, finish: FinishRecorder
) -> None:
    for stream in ("a", "b"):
        timeline.stream = stream
        reservation.use()
    timeline.stream, before = "c", len(timeline.recorded)
    assert reservation.commit()
    *joined, last = timeline.recorded[before:]
    assert {fence.stream for fence in joined} == {"a", "b"}
    assert {fence for stream, fence in timeline.waits if stream == "c"} == set(joined)
    assert finish.calls == [(last, False)]
    assert last.stream == "c"


def test_commit_without_a_write_waits_for_the_copies(
    reservation: Reservation, timeline: RecordingTimeline
) -> None:
    assert reservation.commit()
    assert timeline.waits == [("a", COPIED)]


def test_cancel_frees_the_pages_behind_the_writes(
    reservation: Reservation, timeline: RecordingTimeline, finish: FinishRecorder
) -> None:
    reservation.use()
    reservation.cancel()
    reservation.cancel()
    assert finish.calls == [(timeline.recorded[-1], True)]


def test_garbage_collected_reservation_keeps_the_streams_that_wrote(
    timeline: RecordingTimeline, pool: PagePool, finish: FinishRecorder
) -> None:
    pages, _ = pool.allocate(2)
    pending = PendingWrite(0, b"k" * 32, 3, 1.0, pool, pages, (), PendingCopies([], {COPIED}))
    abandoned: deque[AbandonedWrite] = deque()
    reservation = Reservation(pending, CPU, timeline, finish, abandoned)  # type: ignore[arg-type]
    reservation.use()
    del reservation
    [write] = abandoned
    assert (write.pending, write.streams) == (pending, {"a"})
    assert finish.calls == []


def test_join_waits_only_for_other_streams(timeline: RecordingTimeline) -> None:
    fence = join(timeline, {"a", "b"})  # type: ignore[arg-type]
    assert [other.stream for _, other in timeline.waits] == ["b"]
    assert fence == timeline.recorded[-1]
    assert fence.stream == "a"


def test_entry_fences_are_its_write_and_each_last_read(pool: PagePool) -> None:
    pages, _ = pool.allocate(1)
    entry = Entry(b"k" * 32, 2, 1.0, pool, pages, WRITTEN)
    assert entry.fences() == (WRITTEN,)
    entry.reads = {stream: Fence(stream, None) for stream in ("a", "b")}
    assert entry.fences() == (WRITTEN, Fence("a", None), Fence("b", None))
