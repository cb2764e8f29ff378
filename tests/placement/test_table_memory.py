"""The memory of tables: no table is handed out again before the launches that read it are done, and nothing
waits.
"""

import gc
import threading
import weakref

import torch
from hypothesis import given
from hypothesis import strategies as st

from vitcache.placement.table_memory import BLOCK_VALUES, TableMemory, _make_memory, table_memory_of


class Stream:
    """A stream that is as far as the test says: fences pass in order, when `run` lets them."""

    def __init__(self):
        self.launched = self.done = self.fences = self.blocks = 0

    def launch(self):
        self.launched += 1
        return self.launched

    def run(self, launches):
        self.done = max(self.done, min(launches, self.launched))

    def fence(self):
        self.fences += 1
        return Fence(self, self.launched)

    def allocate(self, values):
        self.blocks += 1
        return torch.zeros(values, dtype=torch.int64)


class Fence:
    def __init__(self, stream, at):
        self.stream, self.at = stream, at

    def query(self):
        return self.stream.done >= self.at


@given(st.lists(st.tuples(st.integers(1, BLOCK_VALUES + 10), st.integers(0, 6)), max_size=40))
def test_no_table_is_written_before_its_launch_has_read_it(steps):
    stream = Stream()
    memory = TableMemory(stream.allocate, stream.fence)
    unread = {}
    for values, lag in steps:
        table = memory.reserve(values)
        assert len(table) == values
        assert table.data_ptr() % 16 == 0
        first, last = table.data_ptr(), table.data_ptr() + 8 * values
        for launch, (other_first, other_last, _) in unread.items():
            assert last <= other_first or other_last <= first, f"launch {launch} has not read its table"
        launch = stream.launch()
        unread[launch] = (first, last, table)
        stream.run(launch - lag)
        unread = {number: table for number, table in unread.items() if number > stream.done}


def test_one_fence_per_lap_and_two_blocks_where_the_device_keeps_up():
    stream = Stream()
    memory = TableMemory(stream.allocate, stream.fence)
    tables_per_block, laps = 64, 10
    for _ in range(laps * tables_per_block):
        memory.reserve(BLOCK_VALUES // tables_per_block)
        stream.run(stream.launch() - 3)
    assert stream.fences == laps - 1
    assert memory.num_blocks == stream.blocks == 2


def test_a_device_that_is_behind_costs_blocks_and_not_time():
    stream = Stream()
    memory = TableMemory(stream.allocate, stream.fence)
    for _ in range(5):
        memory.reserve(BLOCK_VALUES)
        stream.launch()
    assert memory.num_blocks == 5
    stream.run(5)
    for _ in range(20):
        memory.reserve(BLOCK_VALUES)
        stream.run(stream.launch())
    assert stream.blocks == 5


def test_a_table_larger_than_a_block_gets_its_own():
    stream = Stream()
    memory = TableMemory(stream.allocate, stream.fence)
    assert len(memory.reserve(3 * BLOCK_VALUES)) == 3 * BLOCK_VALUES


def test_tables_are_in_host_memory_whatever_torchs_default_device_is(device):
    with torch.device("meta"):
        table = _make_memory(torch.empty(0, device=device).device).reserve(4)
    assert table.device.type == "cpu"
    assert table.is_pinned() == (device == "cuda")


def test_every_thread_has_a_memory_of_its_own(device):
    device = torch.empty(0, device=device).device
    mine, others = table_memory_of(device), []
    thread = threading.Thread(target=lambda: others.append(table_memory_of(device)))
    thread.start()
    thread.join()
    assert table_memory_of(device) is mine
    assert others[0] is not mine


def test_what_is_held_goes_when_its_launches_have_read_it():
    class Rows:
        pass

    stream = Stream()
    memory = TableMemory(stream.allocate, stream.fence)
    held = []
    for _ in range(3):
        rows = Rows()
        held.append(weakref.ref(rows))
        stream.launch()
        memory.keep_alive(rows)
    del rows
    stream.run(2)
    memory.keep_alive(None)
    assert [rows() is None for rows in held] == [True, True, False]


def test_a_memory_outlives_the_thread_that_made_it(device):
    device, memories = torch.empty(0, device=device).device, []
    thread = threading.Thread(target=lambda: memories.append(weakref.ref(table_memory_of(device))))
    thread.start()
    thread.join()
    gc.collect()
    assert memories[0]() is not None
