"""Table memory: it is not reused before the launches that read it are complete, and the host never waits."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import interrupts
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitcache.placement import table_memory
from vitcache.placement.table_memory import (
    BLOCK_VALUES,
    FIRST_BLOCK_VALUES,
    PER_THREAD_STREAM,
    TableMemory,
    _make_memory,
    table_memory_of,
)

CPU = torch.device("cpu")


class Stream:
    """A stream. `run` completes its first `launches` launches."""

    def __init__(self):
        self.num_launches = self.num_complete = self.num_fences = self.num_blocks = 0

    def launch(self):
        self.num_launches += 1
        return self.num_launches

    def run(self, launches):
        self.num_complete = max(self.num_complete, min(launches, self.num_launches))

    def record_fence(self):
        self.num_fences += 1
        return Fence(self, self.num_launches)

    def allocate(self, num_values):
        self.num_blocks += 1
        return torch.zeros(num_values, dtype=torch.int64)


class Fence:
    """Complete when the first `num_launches` launches of the stream are complete."""

    def __init__(self, stream, num_launches):
        self.stream, self.num_launches = stream, num_launches

    def query(self):
        return self.stream.num_complete >= self.num_launches


@given(st.lists(st.tuples(st.integers(1, BLOCK_VALUES + 10), st.integers(0, 6)), max_size=40))
def test_reserve_returns_no_memory_of_a_table_in_flight(steps):
    stream = Stream()
    memory = TableMemory(stream.allocate, stream.record_fence)
    unread = {}
    for num_values, lag in steps:
        table = memory.reserve(num_values)
        assert len(table) == num_values
        assert table.data_ptr() % 16 == 0
        begin, end = table.data_ptr(), table.data_ptr() + 8 * num_values
        for launch, (other_begin, other_end, _) in unread.items():
            assert end <= other_begin or other_end <= begin, f"launch {launch} has not read its table"
        launch = stream.launch()
        unread[launch] = (begin, end, table)
        stream.run(launch - lag)
        unread = {number: table for number, table in unread.items() if number > stream.num_complete}


def test_reserve_interrupted_at_any_line_frees_and_reuses_no_memory_in_flight():
    stream, blocks = Stream(), []

    def allocate(num_values):
        block = stream.allocate(num_values)
        blocks.append((block.data_ptr(), 8 * num_values, weakref.ref(block.untyped_storage())))
        return block

    def reserve_and_launch():
        table = memory.reserve(num_values)
        begin, end = table.data_ptr(), table.data_ptr() + 8 * num_values
        assert all(end <= other_begin or other_end <= begin for _, other_begin, other_end in unread)
        unread.append((stream.launch(), begin, end))

    num_values = FIRST_BLOCK_VALUES // 2 + 1  # the first block holds one table, later blocks more
    for line in range(1, 40):
        memory, unread = TableMemory(allocate, stream.record_fence), []
        for call in range(12):
            if call % 3 == 1:
                interrupts.interrupt(reserve_and_launch, line, {table_memory.__file__})
            reserve_and_launch()
            stream.run(stream.num_launches - 2)
            unread = [table for table in unread if table[0] > stream.num_complete]
            for _, begin, end in unread:
                assert any(
                    first <= begin and end <= first + size and storage() is not None
                    for first, size, storage in blocks
                ), line


def test_reserve_records_one_fence_per_block_and_needs_two_blocks():
    stream = Stream()
    memory = TableMemory(stream.allocate, stream.record_fence)
    tables_per_block, num_full_blocks = 64, 20
    for _ in range(num_full_blocks * tables_per_block):
        memory.reserve(BLOCK_VALUES // tables_per_block)
        stream.run(stream.launch() - 3)
    assert num_full_blocks < stream.num_fences <= num_full_blocks + 4  # the first blocks are smaller
    assert memory.num_blocks == 2
    assert stream.num_blocks <= 4 + 2


def test_blocks_begin_small_and_double_as_tables_fill_them():
    sizes, stream = [], Stream()

    def allocate(num_values):
        sizes.append(num_values)
        return stream.allocate(num_values)

    memory = TableMemory(allocate, stream.record_fence)
    for _ in range(4 * BLOCK_VALUES // FIRST_BLOCK_VALUES):
        memory.reserve(FIRST_BLOCK_VALUES)
        stream.run(stream.launch())
    assert sizes == [FIRST_BLOCK_VALUES * factor for factor in (1, 2, 4, 8, 16)]
    assert sizes[-1] == BLOCK_VALUES
    assert memory.num_blocks == 1  # the device is never behind


def test_reserve_while_the_device_is_behind_allocates_blocks():
    stream = Stream()
    memory = TableMemory(stream.allocate, stream.record_fence)
    for _ in range(5):
        memory.reserve(BLOCK_VALUES)
        stream.launch()
    assert memory.num_blocks == 5
    stream.run(5)
    for _ in range(20):
        memory.reserve(BLOCK_VALUES)
        stream.run(stream.launch())
    assert stream.num_blocks == 5


def test_reserve_table_larger_than_a_block_gets_its_own_block():
    stream = Stream()
    memory = TableMemory(stream.allocate, stream.record_fence)
    assert len(memory.reserve(3 * BLOCK_VALUES)) == 3 * BLOCK_VALUES


def test_reserve_under_another_default_device_is_in_host_memory(device):
    with torch.device("meta"):
        table = _make_memory(torch.empty(0, device=device).device).reserve(4)
    assert table.device.type == "cpu"
    assert table.is_pinned() == (device == "cuda")


def test_table_memory_of_is_separate_for_each_thread(device):
    device = torch.empty(0, device=device).device
    memory, thread_memories = table_memory_of(device), []
    thread = threading.Thread(target=lambda: thread_memories.append(table_memory_of(device)))
    thread.start()
    thread.join()
    assert table_memory_of(device) is memory
    assert thread_memories[0] is not memory


def test_keep_alive_drops_values_whose_launches_are_complete():
    class Rows:
        pass

    stream = Stream()
    memory = TableMemory(stream.allocate, stream.record_fence)
    references = []
    for _ in range(3):
        rows = Rows()
        references.append(weakref.ref(rows))
        stream.launch()
        memory.keep_alive(rows)
    del rows
    stream.run(2)
    memory.keep_alive(None)
    assert [reference() is None for reference in references] == [True, True, False]


@pytest.fixture
def place(monkeypatch):
    """A device whose memories are made on a stream that the test runs, and no thread's memory yet."""
    stream = Stream()
    stream.can_record, stream.handle = True, 7
    made = []

    def make(device):
        memory = TableMemory(
            stream.allocate,
            stream.record_fence,
            lambda: table_memory._release_retired(device),
            lambda: stream.can_record,
        )
        made.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(table_memory, "_make_memory", make)
    monkeypatch.setattr(table_memory, "_thread", table_memory._Thread())
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=stream.handle)
    )
    table_memory._retired.clear()
    stream.made, stream.device = made, torch.device("cuda", 0)
    yield stream
    table_memory._retired.clear()


def in_thread(work):
    """Run `work` in a thread that ends; return its result and the identity of the thread."""
    results = []
    thread = threading.Thread(target=lambda: results.append((work(), threading.get_ident())))
    thread.start()
    thread.join()
    return results[0]


def place_once(stream):
    """Reserve a table in the thread's own memory, and queue the launch that reads it."""
    table_memory_of(stream.device).reserve(8)
    stream.launch()


def alive(stream):
    gc.collect()
    return [reference() is not None for reference in stream.made]


def fill_a_block(memory):
    memory.reserve(memory._current.size if memory._current else FIRST_BLOCK_VALUES)
    memory.reserve(1)


def test_memory_of_an_ended_thread_is_freed_when_its_launches_are_complete(place):
    in_thread(lambda: place_once(place))
    place.handle = 9  # the memory is not taken: this thread uses another stream
    mine = table_memory_of(place.device)
    fill_a_block(mine)
    assert alive(place) == [True, True]
    place.run(1)
    fill_a_block(mine)
    assert alive(place) == [False, True]
    assert len(table_memory._retired) == 0


def test_memory_of_an_ended_thread_is_not_freed_before_a_fence_may_be_recorded(place):
    in_thread(lambda: place_once(place))
    place.run(1)
    place.handle, place.can_record = 9, False
    mine = table_memory_of(place.device)
    fill_a_block(mine)
    assert alive(place) == [True, True]
    place.can_record = True
    fill_a_block(mine)
    assert alive(place) == [False, True]


def test_memory_of_a_living_thread_is_not_released(place):
    ready, stop = threading.Event(), threading.Event()

    def work():
        place_once(place)
        ready.set()
        stop.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(60)
    place.run(1)
    fill_a_block(table_memory_of(place.device))
    assert alive(place) == [True, True]
    stop.set()
    thread.join()


def test_many_short_threads_on_one_stream_use_one_memory(place):
    identities = {in_thread(lambda: place_once(place))[1] for _ in range(50)}
    assert len(place.made) == place.num_blocks == 1
    assert len(identities) <= 50  # a system may use an identity again


def test_many_short_threads_on_different_streams_do_not_grow_memory(place):
    for handle in range(100, 150):
        place.handle = handle
        in_thread(lambda: place_once(place))
        place.run(place.num_launches)
    assert sum(alive(place)) <= 2


def test_taken_memory_is_not_freed_although_its_earlier_launches_are_complete(place):
    in_thread(lambda: place_once(place))
    place.handle = 9
    table_memory_of(place.device)  # records the fence of the retired memory
    place.run(1)
    place.handle = 7
    mine = table_memory_of(place.device)
    assert mine is place.made[0]()
    mine.reserve(8)
    place.launch()
    assert not mine.is_read()


def test_memory_of_the_per_thread_stream_is_not_taken(place):
    place.handle, place.can_record = PER_THREAD_STREAM, False
    for _ in range(2):
        in_thread(lambda: place_once(place))
    assert len(place.made) == 2


def test_memory_of_another_device_is_not_touched(place):
    in_thread(lambda: place_once(place))
    place.run(1)
    fill_a_block(table_memory_of(CPU))
    assert place.num_fences == 1  # that of the CPU's own block
    assert alive(place)[0]


@pytest.mark.parametrize(
    ("stream_id", "handle", "expected"), [(0, 0, True), (35, 0x7F00, True), (0x7F00, 0x7F00, False)]
)
@pytest.mark.parametrize("is_capturing", [False, True])
def test_can_record_refuses_a_foreign_or_captured_stream(
    monkeypatch, stream_id, handle, expected, is_capturing
):
    entered = []
    monkeypatch.setattr(
        torch.cuda, "stream", lambda stream: entered.append(stream) or pytest.MonkeyPatch.context()
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: is_capturing)
    stream = SimpleNamespace(stream_id=stream_id, cuda_stream=handle)
    assert table_memory._can_record(stream) == (expected and not is_capturing)
    assert entered == [stream] * expected  # a foreign stream is not touched


def test_table_memory_of_threads_that_end_at_once_loses_and_shares_nothing(place):
    """The device has read everything, so that every memory is either used by one thread or freed."""
    used, failed = [], []

    def work():
        try:
            for _ in range(20):
                memory = table_memory_of(place.device)
                used.append(id(memory))
                memory.reserve(8)
        except Exception as error:
            failed.append(error)

    for _ in range(20):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed
    assert len(place.made) <= 4
    assert sum(alive(place)) == len(table_memory._retired) == len(place.made)


SCRIPT = """
import os, threading, torch
from vitcache.placement.table_memory import table_memory_of
device = torch.device("cpu")
table_memory_of(device).reserve(8)
stop = threading.Event()
daemon = threading.Thread(target=lambda: (table_memory_of(device).reserve(8), stop.wait()), daemon=True)
daemon.start()
child = os.fork()
table_memory_of(device).reserve(1 << 20)
thread = threading.Thread(target=lambda: table_memory_of(device).reserve(8))
thread.start()
thread.join()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_exit_and_fork_beside_a_living_thread_print_no_error():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
