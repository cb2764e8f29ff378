"""`FeatureBatches` with stand-in fields: order, overlap, failures, and memory that is not kept.

tests/engines/test_feature_batches.py compares the encoder's arguments with those of vLLM.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rings import copies_in_flight, copy_stream, wait_on_stream
from torch import Tensor
from vllm_scene.fields import Elem, MultiModalBatchedField, MultiModalFlatField, install, make_item

from vitcache import CudaError, PinnedRing, Ticket
from vitcache.adapters.vllm.feature_batches import FeatureBatches, group_positions
from vitcache.testing import stand_in

CPU = torch.device("cpu")
WIDTH = 4096  # 4 rows are a field that is copied item by item


@pytest.fixture(autouse=True)
def fresh_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    install(monkeypatch)
    stand_in.reset()
    yield
    stand_in.reset()


@pytest.fixture
def ring_options() -> dict[str, Any]:
    return {"capacity_bytes": 1 << 20, "piece_bytes": 1 << 14}


def make_items(count: int, num_rows: int = 4) -> list[tuple[str, dict[str, Elem]]]:
    return [("image", make_item(num_rows, WIDTH, seed)) for seed in range(count)]


def pixels_of(items: list[tuple[str, dict[str, Elem]]]) -> Tensor:
    return torch.cat([item["pixel_values"].data for _, item in items])


class Encoder:
    """Notes its calls and the sums of its pixels; `before` is called with the number of the call."""

    def __init__(self, before: Callable[[int], object] = lambda call: None) -> None:
        self.before = before
        self.pixels: list[Tensor] = []

    def __call__(self, modality: str, num_items: int, arguments: dict[str, Any]) -> list[Tensor]:
        self.before(len(self.pixels))
        self.pixels.append(arguments["pixel_values"].clone())
        return [torch.zeros(1) for _ in range(num_items)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # for busy machines
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 1))),
    st.integers(1, 20),
)
def test_group_positions_fills_micro_batches_of_items_that_can_be_batched(
    items: list[tuple[str, int, int]], max_rows: int
) -> None:
    """The third number stands for the fields of an item."""
    modalities, rows, forms = ([item[column] for item in items] for column in range(3))
    batches = group_positions(modalities, rows, max_rows, lambda left, right: forms[left] == forms[right])
    order = sorted(range(len(items)), key=lambda position: modalities[position])
    assert [position for batch in batches for position in batch] == order
    for batch in batches:
        assert len({(modalities[position], forms[position]) for position in batch}) == 1
        assert len(batch) == 1 or sum(rows[position] for position in batch) <= max_rows
    for batch, after in pairwise(batches):
        is_full = sum(rows[position] for position in [*batch, after[0]]) > max_rows
        is_other = len({(modalities[position], forms[position]) for position in [batch[-1], after[0]]}) > 1
        assert is_full or is_other


def test_group_positions_compares_only_adjacent_items_of_a_modality() -> None:
    pairs = []

    def can_batch(left: int, right: int) -> bool:
        pairs.append((left, right))
        return True

    assert group_positions("baabb", [1] * 5, 2, can_batch) == [[1, 2], [0, 3], [4]]
    assert pairs == [(1, 2), (0, 3)]


def test_run_queues_the_next_copies_before_it_calls_encode(
    ring: PinnedRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    copy_to = ring.copy_to

    def record_copy(*arguments: Any, **options: Any) -> Ticket:
        log.append("copy")
        return copy_to(*arguments, **options)

    monkeypatch.setattr(ring, "copy_to", record_copy)
    items = make_items(5)
    encoder = Encoder(lambda call: log.append("encode"))
    for positions, outputs in FeatureBatches(CPU, ring, max_rows=8).run(items, [4] * 5, encoder):
        log.append("use")
        assert len(positions) == len(outputs)
    runs = [(name, len(list(run))) for name, run in groupby(log)]
    one_round = [("encode", 1), ("use", 1)]
    assert runs == [("copy", 4), *one_round, ("copy", 1), *one_round, *one_round]
    assert torch.equal(torch.cat(encoder.pixels), pixels_of(items))


def test_run_with_a_full_ring_calls_encode_before_the_host_waits(
    ring: PinnedRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring holds less than 16 items. No slot retires before the first call of encode."""
    copies: list[int] = []
    copy_to, hold = ring.copy_to, ring.hold()

    def copy_without_wait(*arguments: Any, **options: Any) -> Ticket:
        return copy_to(*arguments, **options, timeout_s=None if copies else 0)

    def before(call: int) -> None:
        if call == 0:
            copies.append(ring.stats().copies)
            hold.__exit__(None, None, None)

    monkeypatch.setattr(ring, "copy_to", copy_without_wait)
    items, encoder = make_items(20), Encoder(before)
    hold.__enter__()
    list(FeatureBatches(CPU, ring, max_rows=40).run(items, [4] * 20, encoder))
    assert 10 < copies[0] < 16
    assert torch.equal(torch.cat(encoder.pixels), pixels_of(items))


def test_run_with_an_item_larger_than_the_ring_encodes_it(ring: PinnedRing) -> None:
    items, encoder = make_items(2, num_rows=2 * ring.capacity_bytes // (4 * WIDTH)), Encoder()
    for _ in FeatureBatches(CPU, ring).run(items, [9000, 9000], encoder):
        ring.check_integrity()
    assert torch.equal(torch.cat(encoder.pixels), pixels_of(items))


def test_run_makes_no_synchronizing_call_while_streams_are_paused(
    ring: PinnedRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = copy_stream(ring)
    # As on a GPU: a stream waits for the ticket, the host does not.
    monkeypatch.setattr(Ticket, "wait", lambda ticket, _=None: wait_on_stream(ticket, stream))
    calls: list[int] = []

    def encode(modality: str, num_items: int, arguments: dict[str, Any]) -> list[Tensor]:
        calls.append(num_items)
        return [torch.zeros(1)] * num_items

    stand_in.reset()  # the ring was opened with calls that synchronize
    with stand_in.paused():
        for _ in FeatureBatches(CPU, ring, max_rows=8).run(make_items(5), [4] * 5, encode):
            assert stand_in.count().synchronizing_calls == 0
        assert copies_in_flight(ring) == 5
    assert calls == [2, 2, 1]


def test_large_join_in_host_memory_is_left_until_encode_was_called(ring: PinnedRing) -> None:
    """vLLM joins along an inner dimension, and the host would delay the encode before it."""
    log: list[str] = []

    class InnerField(MultiModalFlatField):
        def join(self, data: list[Any]) -> Any:
            log.append("join")
            return super().join(data)

    InnerField.__name__ = MultiModalFlatField.__name__
    field = InnerField(dim=1)
    items = [("audio", {"mels": Elem(torch.randn(80, 400), field)}) for _ in range(4)]

    def encode(modality: str, num_items: int, arguments: dict[str, Any]) -> list[Tensor]:
        log.append("encode")
        first = 2 * log.count("encode") - 2
        mels = [item["mels"].data for _, item in items[first : first + 2]]
        assert torch.equal(arguments["mels"], torch.cat(mels, dim=1))
        return [torch.zeros(1)] * num_items

    list(FeatureBatches(CPU, ring, max_rows=2).run(items, [1] * 4, encode))
    assert log == ["join", "encode", "join", "encode"]


def test_tensors_of_unequal_shapes_are_copied_ahead_of_the_encode(ring: PinnedRing) -> None:
    """vLLM's list of them needs no join in host memory."""
    field, copies = MultiModalBatchedField(), []
    items = [("image", {"tiles": Elem(torch.randn(5 + number, 3, 64, 64), field)}) for number in range(4)]

    def encode(modality: str, num_items: int, arguments: dict[str, Any]) -> list[Tensor]:
        copies.append(ring.stats().copies)
        assert [len(tiles) for tiles in arguments["tiles"]] == [3 + 2 * len(copies), 4 + 2 * len(copies)]
        return [torch.zeros(1)] * num_items

    with PinnedRing(1 << 22, backend="host") as ring:
        list(FeatureBatches(CPU, ring, max_rows=2).run(items, [1] * 4, encode))
    assert copies == [4, 4]


def test_exception_of_encode_passes_and_later_steps_work(ring: PinnedRing) -> None:
    def fail(call: int) -> None:
        if call == 1:
            raise ArithmeticError("of the encoder")

    batches, items = FeatureBatches(CPU, ring, max_rows=4), make_items(4)
    steps = batches.run(items, [4] * 4, Encoder(fail))
    assert next(steps)[0] == [0]
    with pytest.raises(ArithmeticError, match="of the encoder"):
        next(steps)
    check_later_step(ring, batches)


@pytest.mark.parametrize("entry", ["cudaMemcpyAsync", "cuStreamWaitValue32_v2", "cudaEventRecord"])
@pytest.mark.parametrize("nth", [1, 6, 11])
def test_failed_copy_raises_and_later_steps_work(ring: PinnedRing, entry: str, nth: int) -> None:
    batches = FeatureBatches(CPU, ring, max_rows=4)
    stand_in.fail(entry, nth)
    with pytest.raises(CudaError, match="999"):
        list(batches.run(make_items(4), [4] * 4, Encoder()))
    stand_in.reset()
    check_later_step(ring, batches)


def check_later_step(ring: PinnedRing, batches: FeatureBatches) -> None:
    items, encoder = make_items(3), Encoder()
    list(batches.run(items, [4] * 3, encoder))
    assert torch.equal(torch.cat(encoder.pixels), pixels_of(items))
    while ring.stats().num_slots:
        pass  # every slot retires
    ring.check_integrity()


def test_step_that_the_caller_leaves_early_lets_all_slots_retire(ring: PinnedRing) -> None:
    batches = FeatureBatches(CPU, ring, max_rows=4)
    steps = batches.run(make_items(4), [4] * 4, Encoder())
    next(steps)
    steps.close()
    check_later_step(ring, batches)


def test_run_keeps_no_arguments_and_no_outputs_of_a_micro_batch(ring: PinnedRing) -> None:
    """Arguments are freed when encode returns, outputs when the caller drops them."""
    arguments_of: list[weakref.ref[Tensor]] = []

    def encode(modality: str, num_items: int, arguments: dict[str, Any]) -> list[Tensor]:
        arguments_of.append(weakref.ref(arguments["pixel_values"]))
        return [torch.zeros(1) for _ in range(num_items)]

    steps = FeatureBatches(CPU, ring, max_rows=8).run(make_items(6), [4] * 6, encode)
    positions, outputs = next(steps)
    assert arguments_of[0]() is None
    output = weakref.ref(outputs[0])
    del positions, outputs
    assert output() is None
    assert len(list(steps)) == 2


def test_run_refuses_other_numbers_of_rows_than_items(ring: PinnedRing) -> None:
    with pytest.raises(ValueError, match="2 items have 3"):
        next(FeatureBatches(CPU, ring).run(make_items(2), [4] * 3, Encoder()))


def test_run_without_a_ring_starts_nothing_ahead_and_encodes_all_items() -> None:
    items, encoder = make_items(5), Encoder()
    steps = FeatureBatches(CPU, None, max_rows=8).run(items, [4] * 5, encoder)
    assert [positions for positions, _ in steps] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat(encoder.pixels), pixels_of(items))


def test_tensor_that_no_ring_can_copy_is_an_argument_as_it_is(ring: PinnedRing) -> None:
    sparse, flags = torch.eye(3).to_sparse(), ["a", None, 3]
    item = {key: Elem(data, MultiModalFlatField()) for key, data in (("mask", sparse), ("flags", flags))}
    found: list[dict[str, Any]] = []
    list(
        FeatureBatches(CPU, ring).run([("image", item)], [1], lambda *call: found.append(call[2]) or [sparse])
    )
    [arguments] = found
    assert arguments["mask"].layout == torch.sparse_coo
    assert torch.equal(arguments["mask"].to_dense(), torch.eye(3))
    assert arguments["flags"] == flags


@pytest.mark.parametrize("count", [1, 2])
def test_features_that_require_gradients_pass_the_ring_without_them(ring: PinnedRing, count: int) -> None:
    items, encoder = make_items(count), Encoder()
    for _, item in items:
        item["pixel_values"].data.requires_grad_()
    list(FeatureBatches(CPU, ring).run(items, [4] * count, encoder))
    [pixels] = encoder.pixels
    assert torch.equal(pixels, pixels_of(items))
    assert not pixels.requires_grad
