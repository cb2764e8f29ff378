"""What a lease and a reservation ask of the streams, with a timeline that takes notes."""

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


class Notes:
    """A timeline whose current stream is set by the test."""

    copy_stream: Hashable = "copies"

    def __init__(self) -> None:
        self.stream: Hashable = "a"
        self.waits: list[tuple[Hashable, Fence]] = []  # (stream that waits, for what)
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
def notes() -> Notes:
    return Notes()


@pytest.fixture
def pool() -> PagePool:
    return PagePool("device", 4, 2, 3, torch.float32, CPU)


def make_lease(notes: Notes, pool: PagePool) -> Lease:
    pages, _ = pool.allocate(2)
    entry = Entry(b"k" * 32, 3, 1.0, pool, pages, WRITTEN)
    return Lease([entry], CacheHandle(CPU, notes, notes.releases))  # type: ignore[arg-type]


def test_each_stream_waits_once_for_the_writing(notes: Notes, pool: PagePool) -> None:
    lease = make_lease(notes, pool)
    for stream in ("a", "a", "b"):
        notes.stream = stream
        lease.use()
    assert notes.waits == [("a", WRITTEN), ("b", WRITTEN)]


def test_the_stream_that_wrote_waits_for_nothing(notes: Notes, pool: PagePool) -> None:
    notes.stream = "writer"
    lease = make_lease(notes, pool)
    lease.use()
    assert notes.waits == []
    [[_, streams]] = released(notes, lease)
    assert streams == {"writer"}


def released(notes: Notes, lease: Lease) -> list[tuple[Entry, frozenset[Hashable]]]:
    lease.release()
    return notes.releases.take()


def test_a_release_names_every_stream_that_read(notes: Notes, pool: PagePool) -> None:
    lease = make_lease(notes, pool)
    for stream in ("a", "b"):
        notes.stream = stream
        lease.use()
    [[entry, streams]] = released(notes, lease)
    assert (entry.num_rows, streams) == (3, {"a", "b"})
    assert released(notes, lease) == []  # a second release is none
    unused = make_lease(notes, pool)
    assert [streams for _, streams in released(notes, unused)] == [frozenset()]


def test_leases_of_one_call_are_all_ordered_and_a_released_one_is_refused(
    notes: Notes, pool: PagePool
) -> None:
    first, second = make_lease(notes, pool), make_lease(notes, pool)
    use_all([first, second])
    assert notes.waits == [("a", WRITTEN)] * 2
    second.release()
    with pytest.raises(RuntimeError, match="released"):
        use_all([first, second])


class Finished:
    """Takes what a reservation hands in."""

    def __init__(self) -> None:
        self.calls: list[tuple[Fence | None, bool]] = []

    def __call__(self, pending: PendingWrite, fence: Fence | None, *, failed: bool) -> WriteResult:
        self.calls.append((fence, failed))
        return WriteResult(not failed, 0, 0)


ROOM = Fence("copies", "room")


@pytest.fixture
def finished() -> Finished:
    return Finished()


@pytest.fixture
def reservation(notes: Notes, pool: PagePool, finished: Finished) -> Reservation:
    pages, _ = pool.allocate(2)
    pending = PendingWrite(0, b"k" * 32, 3, 1.0, pool, pages, (), PendingCopies([], {ROOM}))
    forgotten: deque[AbandonedWrite] = deque()
    return Reservation(pending, CPU, notes, finished, forgotten)  # type: ignore[arg-type]


def test_the_first_write_waits_for_the_room_and_the_next_stream_for_the_first(
    reservation: Reservation, notes: Notes
) -> None:
    reservation.write(torch.ones(3, 3))
    assert notes.waits == [("a", ROOM)]
    notes.stream = "b"
    reservation.use()
    reservation.use()
    assert notes.waits[1:] == [("b", notes.recorded[0])]
    assert notes.recorded[0].stream == "a"


def test_a_commit_comes_behind_every_stream_that_wrote(
    reservation: Reservation, notes: Notes, finished: Finished
) -> None:
    for stream in ("a", "b"):
        notes.stream = stream
        reservation.use()
    notes.stream, before = "c", len(notes.recorded)
    assert reservation.commit()
    *joined, last = notes.recorded[before:]
    assert {fence.stream for fence in joined} == {"a", "b"}
    assert {fence for stream, fence in notes.waits if stream == "c"} == set(joined)
    assert finished.calls == [(last, False)]
    assert last.stream == "c"


def test_a_commit_without_a_write_still_waits_for_the_room(reservation: Reservation, notes: Notes) -> None:
    assert reservation.commit()
    assert notes.waits == [("a", ROOM)]


def test_a_cancel_frees_the_pages_behind_what_was_written(
    reservation: Reservation, notes: Notes, finished: Finished
) -> None:
    reservation.use()
    reservation.cancel()
    reservation.cancel()
    assert finished.calls == [(notes.recorded[-1], True)]


def test_a_forgotten_reservation_is_left_with_the_streams_that_wrote(
    notes: Notes, pool: PagePool, finished: Finished
) -> None:
    pages, _ = pool.allocate(2)
    pending = PendingWrite(0, b"k" * 32, 3, 1.0, pool, pages, (), PendingCopies([], {ROOM}))
    forgotten: deque[AbandonedWrite] = deque()
    reservation = Reservation(pending, CPU, notes, finished, forgotten)  # type: ignore[arg-type]
    reservation.use()
    del reservation
    [abandoned] = forgotten
    assert (abandoned.pending, abandoned.streams) == (pending, {"a"})
    assert finished.calls == []


def test_a_join_waits_for_other_streams_alone(notes: Notes) -> None:
    fence = join(notes, {"a", "b"})  # type: ignore[arg-type]
    assert [other.stream for _, other in notes.waits] == ["b"]
    assert fence == notes.recorded[-1]
    assert fence.stream == "a"


def test_pages_can_be_written_again_behind_their_writing_and_every_reading(pool: PagePool) -> None:
    pages, _ = pool.allocate(1)
    entry = Entry(b"k" * 32, 2, 1.0, pool, pages, WRITTEN)
    assert entry.fences() == (WRITTEN,)
    entry.reads = {stream: Fence(stream, None) for stream in ("a", "b")}
    assert entry.fences() == (WRITTEN, Fence("a", None), Fence("b", None))
