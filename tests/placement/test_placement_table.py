"""`PlacementTable`: its address is fixed, and `update` is refused while a launch may read it.

On the CPU a second call stands for a replay. The tests with CUDA graphs are in tests/gpu.
"""

import numpy as np
import pytest
import torch
from caches import make_cache
from placement_cases import expected_scatter, make_rows, poisoned, same_bits

from vitcache import CudaError, PlacementTable, Span, embed_tokens, scatter_embeddings
from vitcache.placement import dispatch, placement_table
from vitcache.placement.placement import Placement

HIDDEN = 32


@pytest.fixture(params=["backend of the device", "kernels"], autouse=True)
def backend(request, device, monkeypatch):
    """Run each test with the device's backend, and with the Triton kernels."""
    if request.param == "kernels":
        pytest.importorskip("triton")
        if device == "cpu" and torch.cuda.is_available():
            pytest.skip("with a CUDA device, kernels are compiled and cannot take CPU tensors")
        monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)


def bf16(num_rows, device, width=HIDDEN):
    return make_rows(num_rows, width, torch.bfloat16, device)


def test_scatter_after_each_update_places_the_new_rows(device):
    table = PlacementTable(12, device=device)
    address = table.rows.data_ptr()
    for items, spans in [
        ([bf16(3, device), bf16(2, device)], [1, 6]),
        ([bf16(9, device)], [[Span(0, 4, 5), Span(8, 2, 0)]]),
        ([], []),
    ]:
        assert table.update(items, spans) is table
        out = poisoned(10, HIDDEN, dtype=torch.bfloat16, device=device)
        expected, _ = expected_scatter(out, items, spans)
        assert scatter_embeddings(out, table, None) is out
        assert same_bits(out, expected)
    assert table.rows.data_ptr() == address


def test_embed_tokens_after_each_update_places_the_new_rows(device):
    weight, ids = bf16(20, device), torch.randint(0, 20, (9,), device=device)
    table = PlacementTable(9, device=device).update([bf16(2, device, 3 * HIDDEN)], [0])
    for items, spans in [
        ([bf16(2, device, 3 * HIDDEN)], [3]),
        ([bf16(4, device, 3 * HIDDEN)], [Span(0, 3, 1)]),
    ]:
        deepstack = poisoned(2, 9, HIDDEN, dtype=torch.bfloat16, device=device)
        table.update(items, spans)
        out = embed_tokens(ids, weight, table, None, deepstack=deepstack)
        expected, levels = expected_scatter(weight[ids], items, spans, torch.zeros_like(deepstack))
        assert same_bits(out, expected)
        assert same_bits(deepstack, levels)


def test_update_takes_leases_and_packed_rows(device):
    cache = make_cache(width=HIDDEN, dtype=torch.bfloat16, page_rows=4, device=device)
    rows = bf16(6, device)
    cache.put(b"k" * 32, rows)
    out = poisoned(12, HIDDEN, dtype=torch.bfloat16, device=device)
    with cache.get(b"k" * 32) as lease:
        scatter_embeddings(out, PlacementTable(8, device=device).update([lease], [1]), None)
    packed = PlacementTable(8, device=device).update(rows, np.array([[8, 2, 4]]))
    scatter_embeddings(out, packed, None)
    assert same_bits(out[1:7], rows)
    assert same_bits(out[8:10], rows[4:])
    assert int(out.isnan().all(dim=1).sum()) == 4


def test_update_that_does_not_fit_is_refused_and_keeps_the_placement(device):
    good, rows = bf16(3, device), bf16(5, device)
    table = PlacementTable(4, device=device).update([good], [2])
    out = torch.zeros(8, HIDDEN, dtype=torch.bfloat16, device=device)
    scatter_embeddings(out, table, None)
    unaligned = bf16(2, device, HIDDEN + 1).flatten()[1:][: 2 * HIDDEN].view(2, HIDDEN)
    for error, message, items, spans in [
        (ValueError, "the placement has 5 rows, the table's max_rows is 4", [rows], [0]),
        (IndexError, r"item 0 \(tokens \[6, 9\)\) does not fit in 8 tokens", [good], [6]),
        (ValueError, "overlap", [good, good], [0, 1]),
        (TypeError, "the rows are torch.float32, the table's dtype is torch.bfloat16", [good.float()], [0]),
        (ValueError, "width 31, the destination takes 32", [bf16(1, device, 31)], [0]),
        (ValueError, "rows in a table must begin at multiples of 16 bytes", [unaligned], [0]),
    ]:
        with pytest.raises(error, match=message):
            table.update(items, spans)
    out_after = torch.zeros_like(out)
    scatter_embeddings(out_after, table, None)
    assert same_bits(out_after, out)
    assert same_bits(out_after[2:5], good)


def test_table_that_does_not_fit_the_destination_is_refused(device):
    table = PlacementTable(8, device=device).update([bf16(3, device)], [2])
    scatter_embeddings(torch.zeros(20, HIDDEN, dtype=torch.bfloat16, device=device), table, None)
    table.update([bf16(3, device)], [17])
    with pytest.raises(IndexError, match=r"tokens \[17, 20\)\) does not fit in 10 tokens"):
        scatter_embeddings(torch.zeros(10, HIDDEN, dtype=torch.bfloat16, device=device), table, None)
    with pytest.raises(ValueError, match=r"the table has rows of width 32, the destination takes 16"):
        scatter_embeddings(torch.zeros(20, 16, dtype=torch.bfloat16, device=device), table, None)


def test_update_is_checked_against_the_smallest_destination_so_far(device):
    weight = bf16(3, device)
    table = PlacementTable(6, device=device).update([], [])
    for num_tokens in (5, 0):
        embed_tokens(torch.zeros(num_tokens, dtype=torch.int64, device=device), weight, table, None)
    scatter_embeddings(torch.zeros(100, HIDDEN, dtype=torch.bfloat16, device=device), table, None)
    with pytest.raises(IndexError, match="does not fit in 0 tokens"):
        table.update([bf16(2, device)], [90])


def test_scatter_table_with_released_lease_is_refused_and_writes_nothing(device):
    cache = make_cache(width=HIDDEN, dtype=torch.bfloat16, page_rows=4, device=device)
    cache.put(b"k" * 32, bf16(3, device))
    lease = cache.get(b"k" * 32)
    table = PlacementTable(4, device=device).update([lease], [0])
    lease.release()
    out = torch.zeros(8, HIDDEN, dtype=torch.bfloat16, device=device)
    with pytest.raises(RuntimeError, match="released"):
        scatter_embeddings(out, table, None)
    assert not out.any()


def test_failed_call_does_not_limit_later_updates(device):
    table = PlacementTable(4, device=device).update([bf16(2, device)], [0])
    with pytest.raises(ValueError, match="there are 9 tokens, the table's max_rows is 4"):
        embed_tokens(torch.zeros(9, dtype=torch.int64, device=device), bf16(3, device), table, None)
    table.update([bf16(2, device)], [20])
    table = PlacementTable(30, device=device).update([bf16(2, device)], [0])
    with pytest.raises(ValueError, match="the table has rows of width 32, the destination takes 16"):
        embed_tokens(torch.zeros(9, dtype=torch.int64, device=device), bf16(3, device, 16), table, None)
    table.update([bf16(2, device)], [20])


@pytest.fixture
def capture(monkeypatch):
    """A function that makes `PlacementTable` believe from then on that a CUDA graph is being captured."""
    return lambda: monkeypatch.setattr(placement_table, "is_capturing", lambda device: True)


def test_scatter_table_in_capture_checks_leases_and_queues_no_wait(device, capture, monkeypatch):
    cache = make_cache(width=HIDDEN, dtype=torch.bfloat16, page_rows=4, device=device)
    rows, out = bf16(3, device), torch.zeros(4, HIDDEN, dtype=torch.bfloat16, device=device)
    cache.put(b"k" * 32, rows)
    with cache.get(b"k" * 32) as lease:
        table = PlacementTable(4, device=device).update([lease], [0])
        capture()
        monkeypatch.setattr(Placement, "use_leases", None)
        scatter_embeddings(out, table, None)
        assert same_bits(out[:3], rows)
    with pytest.raises(RuntimeError, match="this lease of 3 rows was released"):
        scatter_embeddings(out, table, None)


def test_table_that_was_read_is_not_written_during_a_capture(device, capture):
    weight, rows = bf16(3, device), bf16(2, device)
    unread, table = (PlacementTable(9, device=device).update([rows], [0]) for _ in range(2))
    embed_tokens(torch.zeros(4, dtype=torch.int64, device=device), weight, table, None)
    table._fences["a call"] = None
    capture()
    unread.update([rows], [1])
    embed_tokens(torch.zeros(4, dtype=torch.int64, device=device), weight, table, None)
    words = "a table that was read cannot be written while a CUDA graph is being captured"
    with pytest.raises(RuntimeError, match=words):
        table.update([rows], [1])
    with pytest.raises(RuntimeError, match=words):
        embed_tokens(torch.zeros(5, dtype=torch.int64, device=device), weight, table, None)


def test_update_with_reservation_is_refused(device):
    cache = make_cache(width=HIDDEN, dtype=torch.bfloat16, page_rows=4, device=device)
    with (
        cache.reserve(bytes(32), 2) as reservation,
        pytest.raises(TypeError, match="a PlacementTable cannot contain a Reservation"),
    ):
        PlacementTable(4, device=device).update([reservation], [0])


def test_table_bad_arguments_raise_with_the_expected_value(device):
    weight, ids = bf16(20, device), torch.zeros(9, dtype=torch.int64, device=device)
    out = torch.zeros(9, HIDDEN, dtype=torch.bfloat16, device=device)
    with pytest.raises(ValueError, match="max_rows is 0, it must be at least 1"):
        PlacementTable(0, device=device)
    for max_rows in (True, np.bool_(True), 4.0, "4"):
        with pytest.raises(TypeError, match=f"max_rows must be an int, got {max_rows!r} of type"):
            PlacementTable(max_rows, device=device)
    assert PlacementTable(np.int32(4), device=device).max_rows == 4
    with pytest.raises(TypeError, match=r"dtype is torch\.int8"):
        PlacementTable(1, dtype=torch.int8, device=device)
    with pytest.raises(RuntimeError, match="this table is empty"):
        scatter_embeddings(out, PlacementTable(4, device=device), None)
    table = PlacementTable(4, device=device).update([bf16(2, device)], [0])
    with pytest.raises(ValueError, match="pass None for spans"):
        scatter_embeddings(out, table, [0])
    with pytest.raises(ValueError, match="there are 9 tokens, the table's max_rows is 4"):
        embed_tokens(ids, weight, table, None)
    with pytest.raises(ValueError, match="records no gradients"):
        embed_tokens(ids, weight.clone().requires_grad_(), table, None)


def test_table_made_in_inference_mode_under_another_default_device_works(device):
    with torch.inference_mode(), torch.device("meta"):
        table = PlacementTable(4, device=device)
    rows = bf16(2, device)
    table.update([rows], [1])
    out = poisoned(4, HIDDEN, dtype=torch.bfloat16, device=device)
    scatter_embeddings(out, table, None)
    assert same_bits(out[1:3], rows)


def test_update_while_a_reader_is_in_flight_is_refused(device):
    class Fence:
        is_complete = False

        def query(self):
            return self.is_complete

    table = PlacementTable(4, device=device).update([bf16(2, device)], [0])
    table._fences["a replay"] = Fence()
    with pytest.raises(RuntimeError, match="work that reads this table is in flight"):
        table.update([bf16(2, device)], [1])
    table._fences["a replay"].is_complete = True
    table.update([bf16(2, device)], [1])


def test_table_on_a_refused_stream_raises_and_writes_nothing(device, monkeypatch):
    def refuse(device):
        raise RuntimeError(f"the current stream of {device} is refused")

    rows, out = bf16(1, device), poisoned(3, HIDDEN, dtype=torch.bfloat16, device=device)
    ids, weight = torch.zeros(3, dtype=torch.int64, device=device), bf16(2, device)
    table = PlacementTable(4, device=device).update([rows], [1])
    monkeypatch.setattr(placement_table, "check_current_stream", refuse)
    with pytest.raises(RuntimeError, match=f"the current stream of {device}.* is refused"):
        scatter_embeddings(out, table, None)
    with pytest.raises(RuntimeError, match="is refused"):
        embed_tokens(ids, weight, table, None, out=out)
    assert out.isnan().all()
    assert not table._fences


def test_table_with_wrong_arguments_raises_and_keeps_its_placement(device):
    with pytest.raises(ValueError, match="device is 'gpu'"):
        PlacementTable(4, device="gpu")
    rows, out = bf16(1, device), poisoned(3, HIDDEN, dtype=torch.bfloat16, device=device)
    table = PlacementTable(4, device=device).update([rows], [1])
    with pytest.raises(TypeError, match="embeddings must be a list with one entry per item, got int"):
        table.update(3, [1])
    with pytest.raises(TypeError, match="spans must be an int, a Span or a list of Span, not Tensor"):
        table.update([rows], [torch.tensor(True)])
    scatter_embeddings(out, table, None)
    assert same_bits(out[1:2], rows)


def test_table_that_cannot_be_made_names_its_argument(device):
    with pytest.raises(ValueError, match=r"^max_rows is \d+, it must be at most 288230376151711744$"):
        PlacementTable(2**63, device=device)
    for dtype in ([], {}, "float32", None, torch.int8):
        with pytest.raises(TypeError, match=r"^dtype is .*, it must be float32, float16 or bfloat16$"):
            PlacementTable(4, dtype=dtype, device=device)
    with pytest.raises(MemoryError, match=rf"^max_rows is {2**50}: the table needs {24 * 2**50} bytes of "):
        PlacementTable(2**50, device=device)
    if not torch.cuda.is_available():
        with pytest.raises(CudaError, match=r"^device is cuda, but torch finds no CUDA device$"):
            PlacementTable(4, device="cuda")
