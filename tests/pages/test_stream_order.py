"""The fences that leases and reservations record and wait for, with a timeline that records its calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from failure import Failure, fail

from vitcache._native import Entry, Ledger, Pending
from vitcache.device.streams import CPU_STREAM, Fence
from vitcache.pages.lease import Lease, LeaseTier, use_all
from vitcache.pages.pool import PagePool
from vitcache.pages.reservation import Reservation, WriteResult, join

CPU = torch.device("cpu")
KEYS = [bytes([number]) * 32 for number in range(3)]
# Streams. The default stream of CUDA is 0, too.
A, B, C, WRITER, COPIES, ALL = range(6)


class RecordingTimeline:
    """A timeline whose current stream is set by the test."""

    copy_stream = COPIES

    def __init__(self) -> None:
        self.stream = A
        self.waits: list[tuple[int, Fence]] = []  # (waiting stream, fence)
        self.recorded: list[Fence] = []

    def current(self) -> int:
        return self.stream

    def record(self, stream: int) -> Fence:
        self.recorded.append(Fence(stream, len(self.recorded)))
        return self.recorded[-1]

    def wait(self, fence: Fence) -> None:
        self.waits.append((self.stream, fence))

    def synchronize(self) -> None:
        self.waits.append((self.stream, Fence(ALL, None)))


WRITTEN = Fence(WRITER, "written")


@pytest.fixture
def timeline() -> RecordingTimeline:
    return RecordingTimeline()


@pytest.fixture
def ledger(timeline: RecordingTimeline) -> Ledger:
    """A ledger of four pages, with an entry of three rows under each of two keys."""
    pool = PagePool("device", 4, 2, 3, torch.float32, CPU)
    tier = LeaseTier(timeline, "device", 2, 3, torch.float32, CPU)  # type: ignore[arg-type]
    ledger = Ledger("lru", pool.make_tier(), None, Lease, tier, tier)
    for key in KEYS[:2]:
        assert ledger.finish(ledger.begin_write(key, 3, 3, 1.0, None), WRITTEN, failed=False)
    return ledger


def get(ledger: Ledger, key: bytes = KEYS[0]) -> Lease:
    lease: Lease = ledger.get(key, None)
    return lease


def released(ledger: Ledger) -> tuple[int, set[int]]:
    """The number of released leases that wait for fences, and the streams of these fences."""
    batch = ledger.take_releases()
    return len(batch), set(batch.streams())


def test_use_waits_once_per_stream_for_the_write(timeline: RecordingTimeline, ledger: Ledger) -> None:
    lease = get(ledger)
    for stream in (A, A, B):
        timeline.stream = stream
        lease.use()
    assert timeline.waits == [(A, WRITTEN), (B, WRITTEN)]


def test_use_on_the_writing_stream_does_not_wait(timeline: RecordingTimeline, ledger: Ledger) -> None:
    timeline.stream = WRITER
    lease = get(ledger)
    lease.use()
    assert timeline.waits == []
    lease.release()
    assert released(ledger) == (1, {WRITER})


def test_use_of_a_write_that_has_passed_is_not_asked_again(
    timeline: RecordingTimeline, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def wait(fence: Fence) -> bool:
        asked.append(timeline.stream)
        return True

    monkeypatch.setattr(timeline, "wait", wait)
    for stream in (A, B, C):
        timeline.stream = stream
        with get(ledger) as lease:
            lease.use()
    assert asked == [A]
    timeline.stream = B
    with get(ledger, KEYS[1]) as lease:  # the write of another entry, with an equal fence
        lease.use()
    assert asked == [A, B]


def test_use_of_many_leases_waits_once_for_each_event(timeline: RecordingTimeline) -> None:
    pool = PagePool("device", 40, 2, 3, torch.float32, CPU)
    tier = LeaseTier(timeline, "device", 2, 3, torch.float32, CPU)  # type: ignore[arg-type]
    ledger = Ledger("lru", pool.make_tier(), None, Lease, tier, tier)
    keys = [bytes([number]) * 32 for number in range(40)]
    events = [f"written {number}" for number in range(20)] * 2
    for key, event in zip(keys, events, strict=True):
        assert ledger.finish(ledger.begin_write(key, 1, 3, 1.0, None), Fence(WRITER, event), failed=False)
    use_all([object(), *(get(ledger, key) for key in keys), torch.zeros(1)])
    assert timeline.waits == [(A, Fence(WRITER, event)) for event in events[:20]]


def test_release_names_every_stream_that_read(timeline: RecordingTimeline, ledger: Ledger) -> None:
    lease = get(ledger)
    for stream in (A, B):
        timeline.stream = stream
        lease.use()
    lease.release()
    lease.release()  # does nothing
    assert released(ledger) == (1, {A, B})


def test_release_of_a_lease_that_no_stream_read_needs_no_fence(
    timeline: RecordingTimeline, ledger: Ledger
) -> None:
    unused, used_on_the_cpu = get(ledger), get(ledger)
    timeline.stream = CPU_STREAM
    used_on_the_cpu.use()
    for lease in (unused, used_on_the_cpu):
        lease.release()
    assert ledger.num_releases == 0
    assert ledger.find_entry(KEYS[0], "device").leases == 0


def test_taken_releases_without_fences_return_to_the_queue(
    timeline: RecordingTimeline, ledger: Ledger
) -> None:
    lease = get(ledger)
    lease.use()
    lease.release()
    batch = ledger.take_releases()
    assert (len(batch), ledger.num_releases) == (1, 0)
    del batch
    assert ledger.num_releases == 1
    batch = ledger.take_releases()
    batch.finish([Fence(A, "read")])
    del batch
    assert ledger.num_releases == 0
    entry = ledger.find_entry(KEYS[0], "device")
    assert (entry.leases, entry.fences) == (0, [WRITTEN, (A, "read")])


def test_use_all_waits_once_for_one_write_and_raises_for_a_released_lease(
    timeline: RecordingTimeline, ledger: Ledger
) -> None:
    other = Fence(WRITER, "other")
    assert ledger.finish(ledger.begin_write(KEYS[1], 3, 3, 1.0, None), other, failed=False)
    first, second = get(ledger), get(ledger, KEYS[1])
    use_all([first, second, first])
    assert timeline.waits == [(A, WRITTEN), (A, other)]
    second.release()
    with pytest.raises(RuntimeError, match="released"):
        use_all([first, second])


def test_use_that_fails_to_wait_has_not_used_the_lease(
    timeline: RecordingTimeline, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = get(ledger)
    with monkeypatch.context() as patch:
        patch.setattr(timeline, "wait", fail)
        with pytest.raises(Failure):
            lease.use()
    lease.use()
    assert timeline.waits == [(A, WRITTEN)]


class FinishRecorder:
    """A `FinishWrite` that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Fence | None, bool]] = []

    def __call__(self, pending: Pending, fence: Fence | None, *, failed: bool) -> WriteResult:
        self.calls.append((fence, failed))
        return WriteResult(not failed)


COPIED = Fence(COPIES, "copied")


@pytest.fixture
def finish() -> FinishRecorder:
    return FinishRecorder()


@pytest.fixture
def pending(ledger: Ledger) -> Pending:
    pending = ledger.begin_write(KEYS[2], 3, 3, 1.0, None)
    pending.set_copied(COPIED)
    return pending


@pytest.fixture
def reservation(
    pending: Pending,
    timeline: RecordingTimeline,
    finish: FinishRecorder,
) -> Reservation:
    return Reservation(pending, CPU, timeline, finish)  # type: ignore[arg-type]


def test_first_write_waits_for_the_copies_and_the_next_stream_for_it(
    reservation: Reservation, timeline: RecordingTimeline
) -> None:
    reservation.write(torch.ones(3, 3))
    assert timeline.waits == [(A, COPIED)]
    timeline.stream = B
    reservation.use()
    reservation.use()
    assert timeline.waits[1:] == [(B, timeline.recorded[0])]
    assert timeline.recorded[0].stream == A


def test_commit_fence_is_behind_every_stream_that_wrote(
    reservation: Reservation, timeline: RecordingTimeline, finish: FinishRecorder
) -> None:
    for stream in (A, B):
        timeline.stream = stream
        reservation.use()
    timeline.stream, before = C, len(timeline.recorded)
    assert reservation.commit()
    *joined, last = timeline.recorded[before:]
    assert {fence.stream for fence in joined} == {A, B}
    assert {fence for stream, fence in timeline.waits if stream == C} == set(joined)
    assert finish.calls == [(last, False)]
    assert last.stream == C


def test_commit_without_a_write_waits_for_the_copies(
    reservation: Reservation, timeline: RecordingTimeline
) -> None:
    assert reservation.commit()
    assert timeline.waits == [(A, COPIED)]


def test_cancel_frees_the_pages_behind_the_writes(
    reservation: Reservation, timeline: RecordingTimeline, finish: FinishRecorder
) -> None:
    reservation.use()
    reservation.cancel()
    reservation.cancel()
    assert finish.calls == [(timeline.recorded[-1], True)]


def test_garbage_collected_reservation_keeps_the_streams_that_wrote(
    ledger: Ledger, timeline: RecordingTimeline, finish: FinishRecorder
) -> None:
    pending = ledger.begin_write(KEYS[2], 3, 3, 1.0, None)
    reservation = Reservation(pending, CPU, timeline, finish)  # type: ignore[arg-type]
    reservation.use()
    del reservation, pending
    for _ in range(2):  # a write that its caller does not finish returns to the ledger
        [write] = ledger.take_abandoned()
        assert (write.key, write.streams) == (KEYS[2], [A])
        del write
    assert finish.calls == []


def test_join_waits_only_for_other_streams(timeline: RecordingTimeline) -> None:
    fence = join(timeline, {A, B})  # type: ignore[arg-type]
    assert [other.stream for _, other in timeline.waits] == [B]
    assert fence == timeline.recorded[-1]
    assert fence.stream == A


def test_entry_fences_are_its_write_and_each_last_read(timeline: RecordingTimeline, ledger: Ledger) -> None:
    def fences() -> list[Any]:
        entry: Entry = ledger.find_entry(KEYS[0], "device")
        return entry.fences

    assert fences() == [WRITTEN]
    for stream, event in ((A, "first"), (B, "read"), (A, "last")):
        timeline.stream = stream
        with get(ledger) as lease:
            lease.use()
        ledger.take_releases().finish([Fence(stream, event)])
    assert sorted(fences()) == sorted([WRITTEN, (A, "last"), (B, "read")])
