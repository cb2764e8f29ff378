"""Table memory: it is not reused before the launches that read it are complete, and the host never waits."""

import gc
import threading
import weakref

import torch
from hypothesis import given
from hypothesis import strategies as st

from vitcache.placement.table_memory import BLOCK_VALUES, TableMemory, _make_memory, table_memory_of


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


def test_reserve_records_one_fence_per_block_and_needs_two_blocks():
    stream = Stream()
    memory = TableMemory(stream.allocate, stream.record_fence)
    tables_per_block, num_full_blocks = 64, 10
    for _ in range(num_full_blocks * tables_per_block):
        memory.reserve(BLOCK_VALUES // tables_per_block)
        stream.run(stream.launch() - 3)
    assert stream.num_fences == num_full_blocks - 1
    assert memory.num_blocks == stream.num_blocks == 2


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


def test_table_memory_of_outlives_its_thread(device):
    device, memories = torch.empty(0, device=device).device, []
    thread = threading.Thread(target=lambda: memories.append(weakref.ref(table_memory_of(device))))
    thread.start()
    thread.join()
    gc.collect()
    assert memories[0]() is not None
