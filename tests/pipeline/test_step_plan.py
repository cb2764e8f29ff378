"""The native `StepPlan` against the plan in Python: item for item, run for run, message for message."""

from __future__ import annotations

import random
from typing import Any

import pytest
import reference_plan
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitcache import Chunk, Item, Items, Span
from vitcache._native import ItemArrays, StepPlan, has_unfolded, read_requests
from vitcache.pipeline.step_keys import fold_given_keys

NAMESPACE = b"here"
KEYS = [bytes([number]) * 32 for number in range(4)]


def native_plan(chunks: Any, num_tokens: int = -1, namespace: bytes = NAMESPACE) -> StepPlan:
    requests = read_requests(chunks, Chunk)
    fold_given_keys(requests, namespace)
    assert not has_unfolded(requests, namespace)
    return StepPlan(chunks, requests, namespace, num_tokens)


def describe(plan: StepPlan) -> list[Any]:
    """Everything that a plan tells, to be compared."""
    items = [
        (
            plan.key(item),
            plan.has_rows(item),
            plan.num_rows(item),
            plan.row_width(item) or None,
            plan.needed_rows(item),
            plan.occurrences(item),
            plan.duplicates(item),
        )
        for item in range(len(plan))
    ]
    assert [plan.occurrence(item) for item in range(len(plan))] == [item[5][0] for item in items]
    return [items, plan.runs()]


def describe_reference(planned: list[reference_plan.PlannedItem]) -> list[Any]:
    items = [
        (
            entry.key,
            entry.item.rows is not None,
            entry.item.num_rows,
            entry.item.row_width,
            max(span.source_start + span.length for _, span in entry.spans),
            entry.occurrences,
            entry.duplicates,
        )
        for entry in planned
    ]
    return [items, reference_plan.runs_of(planned)]


def outcome(call: Any) -> Any:
    try:
        return call()
    except (IndexError, ValueError) as error:
        return type(error), str(error)


def compare(chunks: list[Chunk], num_tokens: int | None, late_keys: dict[int, bytes]) -> str:
    """Compare both plans of some chunks; `late_keys` are the keys by `id` that hashing would find.

    Return which kind of result the plans had, so that a test can see that it reaches all of them.
    """
    planned = outcome(lambda: reference_plan.plan(chunks, NAMESPACE, num_tokens))
    native = outcome(lambda: native_plan(chunks, -1 if num_tokens is None else num_tokens))
    if isinstance(planned, tuple):
        assert native == planned
        return str(planned[1]).split(" ")[-2] if planned[0] is ValueError else "misfit"
    # Until the unkeyed items have keys, only items with known keys are merged.
    unkeyed = [entry for entry in planned if entry.key is None and entry.item.rows is None]
    places = [entry.occurrences[0] for entry in unkeyed]
    assert [native.occurrence(item) for item in native.unkeyed()] == places
    before = reference_plan.merge_equal(reference_plan.plan(chunks, NAMESPACE, num_tokens))
    assert describe(native) == describe_reference(before)
    assert native.given() == [i for i, entry in enumerate(before) if entry.item.rows is not None]
    for item, entry in zip(native.unkeyed(), unkeyed, strict=True):
        if id(entry.item) in late_keys:
            entry.key = late_keys[id(entry.item)]
            native.set_key(item, entry.key)
    firsts = [native.occurrence(item) for item in range(len(native))]
    merged = reference_plan.merge_equal(planned)
    mapping = native.merge()
    assert describe(native) == describe_reference(merged)
    of_place = {place: item for item, entry in enumerate(merged) for place in entry.occurrences}
    expected = [of_place[place] for place in firsts]
    assert mapping == ([] if len(firsts) == len(merged) else expected)
    assert native.merge() == []
    return "merged" if mapping else "planned"


def random_item(rng: random.Random, spans: list[Span], late_keys: dict[int, bytes]) -> Item:
    needed = max((span.source_start + span.length for span in spans), default=0)
    num_rows = max(needed, 12) + rng.choice([0, 0, 0, 0, 1])
    kind = rng.choice(["key", "key", "digest", "other digest", "late", "late", "late", "none", "rows"])
    if kind == "rows":
        key = rng.choice([None, *KEYS])
        return Item(None, spans, rows=torch.zeros(num_rows, 1), key=key)
    width = rng.choice([None, None, None, 2])
    item = Item(None, spans, num_rows=num_rows, key=rng.choice(KEYS) if kind == "key" else None)
    item.complete_key, item.row_width = kind == "key" and rng.random() < 0.5, width
    if "digest" in kind:
        item.digest = (NAMESPACE if kind == "digest" else b"there", rng.choice(KEYS))
    if kind == "late":
        late_keys[id(item)] = rng.choice(KEYS)
    return item


def random_request(rng: random.Random, pool: list[Item], late_keys: dict[int, bytes]) -> list[Item]:
    """Items with separate spans, of which some are interleaved; sometimes spans that overlap."""
    token, spans_of = 0, [[] for _ in range(rng.randrange(6))]  # type: ignore[var-annotated]
    for _ in range(rng.randrange(9)):
        if spans_of:
            token += rng.choice([0, 0, 1, 3])
            length = rng.choice([0, 1, 1, 2, 5])
            spans = rng.choice(spans_of)
            back = rng.choice([0, 0, 0, 0, 0, 0, 2]) if token > 2 else 0
            spans.append(Span(token - back, length, rng.choice([0, 0, sum(span.length for span in spans)])))
            token += length
    items = [random_item(rng, rng.sample(spans, len(spans)), late_keys) for spans in spans_of]
    items += rng.sample(pool, min(len(pool), rng.choice([0, 0, 1, 2])))
    rng.shuffle(items)
    pool += items
    return items


def random_step(rng: random.Random) -> tuple[list[Chunk], int | None, dict[int, bytes]]:
    late_keys: dict[int, bytes] = {}
    pool: list[Item] = []
    requests: list[Items] = []
    chunks, token = [], 0
    for _ in range(rng.randrange(6)):
        if not requests or rng.random() < 0.7:
            requests.append(Items(random_request(rng, pool, late_keys)))
        length = rng.choice([0, 1, 4, 8, 30])
        token += rng.choice([0, 0, 2])
        shift = rng.choice([0, 0, 0, 0, 0, 0, 0, 1])
        chunks.append(Chunk(rng.choice(requests), rng.choice([0, 0, 2, 5]), length, max(0, token - shift)))
        token += length
    rng.shuffle(chunks)
    return chunks, rng.choice([None, token, token, token + 3, max(0, token - 1)]), late_keys


def test_random_plans_agree_with_the_plan_in_python() -> None:
    kinds: dict[str, int] = {}
    for seed in range(3000):
        kind = compare(*random_step(random.Random(seed)))
        kinds[kind] = kinds.get(kind, 0) + 1
    assert set(kinds) >= {"planned", "merged", "misfit", "token"}, kinds
    assert min(kinds.values()) > 30, kinds


@given(st.randoms(use_true_random=False))
def test_drawn_plans_agree_with_the_plan_in_python(rng: random.Random) -> None:
    compare(*random_step(rng))


SPANS = st.builds(Span, st.integers(0, 12), st.integers(0, 6), st.integers(0, 3))


@given(st.lists(st.lists(SPANS, max_size=3), max_size=5), st.integers(0, 12), st.integers(0, 12))
def test_overlaps_of_spans_are_refused_with_the_same_message(
    spans_of: list[list[Span]], start: int, length: int
) -> None:
    compare([Chunk([Item(None, spans) for spans in spans_of], start, length)], None, {})


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=6),
    st.integers(0, 20),
)
def test_bad_batches_are_refused_with_the_same_message(
    places: list[tuple[int, int]], num_tokens: int
) -> None:
    compare([Chunk([], 0, length, offset) for offset, length in places], num_tokens, {})


@pytest.mark.parametrize(
    "numbers",
    [
        [(0, 5, 2**60)],
        [(0, 5, 2**63)],
        [(0, 5, 2**80)],
        [(0, 2**80, 3)],
        [(0, 2**63 - 1, 2**63 - 1)],
        [(2**80, 4, 4)],
        [(0, 4, 8), (0, 1, 2**70)],
        [(0, 4, 4), (0, 1, 4), (0, 1, 2**70)],
    ],
)
@pytest.mark.parametrize("num_tokens", [10, None])
def test_a_chunk_may_have_any_numbers(numbers: list[tuple[int, int, int]], num_tokens: int | None) -> None:
    items = Items([Item(None, Span(0, 3)), Item(None, Span(2**60, 2**60), key=KEYS[0])])
    compare([Chunk(items, *number) for number in numbers], num_tokens, {})


def test_two_positions_of_one_object_in_a_chunk_are_one_item_and_two_occurrences() -> None:
    item = Item(None, Span(2, 3))
    with pytest.raises(ValueError, match=r"one of item 0 covers tokens \[2, 5\).* item 1 begins at token 2"):
        native_plan([Chunk([item, item], 0, 8)])
    plan = native_plan([Chunk([item], 0, 8), Chunk([Item(None, None), item], 0, 8, 8)], 16)
    assert plan.occurrences(0) == [(0, 0), (1, 1)]
    assert (len(plan), plan.duplicates(0)) == (1, [])
    assert plan.runs() == [(0, 2, 3, 0), (0, 10, 3, 0)]


def test_a_computed_key_is_valid_in_its_namespace_only() -> None:
    items = Items(
        [
            Item(None, Span(0, 2)),
            Item(None, Span(2, 2)),
            Item(None, Span(4, 2), key=KEYS[2], complete_key=True),
        ]
    )
    chunks = [Chunk(items, 0, 6)]
    items.arrays.set_computed(0, NAMESPACE, KEYS[0])
    items.arrays.set_computed(1, NAMESPACE, KEYS[0])
    plan = native_plan(chunks)
    assert [plan.key(item) for item in range(len(plan))] == [KEYS[0], KEYS[2]]
    assert native_plan(chunks, namespace=b"there").unkeyed() == [0, 1]
    items.arrays.set_computed(1, b"there", KEYS[1])
    assert native_plan(chunks).unkeyed() == []  # an item stores one computed key per namespace
    assert native_plan(chunks, namespace=b"there").unkeyed() == [0]
    items.arrays.set_computed(2, NAMESPACE, KEYS[3])
    assert native_plan(chunks).key(1) == KEYS[2]  # a complete key is preferred


def test_merge_keeps_objects_in_the_order_of_the_step() -> None:
    first, other = Item(None, Span(0, 1)), Item(None, Span(2, 1))
    items = [first, Item(None, Span(1, 1), key=KEYS[0]), other, Item(None, Span(3, 1), key=KEYS[0])]
    plan = native_plan([Chunk(items, 0, 4), Chunk([first], 0, 1, 4)], 5, b"")
    assert plan.duplicates(1) == [(0, 3)]
    for item in plan.unkeyed():
        plan.set_key(item, KEYS[0])
    assert plan.merge() == [0, 0, 0]
    assert plan.duplicates(0) == [(0, 1), (0, 2), (0, 3)]
    assert plan.occurrences(0) == [(0, 0), (1, 0), (0, 1), (0, 2), (0, 3)]
    assert [run[0] for run in plan.runs()] == [0] * 5


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (Chunk([], 0, 1), "chunks must be a list of Chunk, got Chunk"),
        (torch.zeros(2), "chunks must be a list of Chunk, got Tensor"),
        ([Chunk([], 0, 1), 1], "chunk 1 must be a Chunk, got int"),
        ((torch.zeros(2),), "chunk 0 must be a Chunk, got Tensor"),
    ],
)
def test_step_plan_refuses_other_types(chunks: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        native_plan(chunks)


def test_step_plan_refuses_numbers_that_were_set_to_negative_ones() -> None:
    chunk = Chunk([Item(None, Span(0, 2))], 0, 4)
    chunk.length = -3
    with pytest.raises(ValueError, match="length must be at least 0, got -3"):
        native_plan([chunk])


def test_indices_and_keys_are_checked() -> None:
    plan = native_plan([Chunk([Item(None, Span(0, 2))], 0, 2)])
    for index in (-1, 1, 2**40):
        for method in (plan.key, plan.num_rows, plan.needed_rows, plan.has_rows):
            with pytest.raises(IndexError, match=f"item {index} does not exist, the number of items is 1"):
                method(index)
        for places in (plan.occurrence, plan.occurrences, plan.duplicates):
            with pytest.raises(IndexError, match=f"item {index} does not exist"):
                places(index)
        with pytest.raises(IndexError, match=f"item {index} does not exist"):
            plan.set_key(index, KEYS[0])
    with pytest.raises(ValueError, match="key has 1 bytes, it must have 32"):
        plan.set_key(0, b"a")
    assert plan.unkeyed() == [0]
    arrays = Items([Item(None, None)]).arrays
    assert len(arrays) == 1
    with pytest.raises(IndexError, match="item 1 does not exist, the number of items is 1"):
        arrays.set_computed(1, NAMESPACE, KEYS[0])


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("spans", [Span(0, 1)], TypeError, "item 1: spans must be a tuple, got list"),
        ("spans", (Span(0, 1), 3), TypeError, "item 1: every span must be a Span, got int"),
        ("spans", ((0, 1),), TypeError, "item 1: every span must be a Span, got tuple"),
        ("key", "a", TypeError, "key must be bytes, got str"),
        ("key", b"a", ValueError, "key has 1 bytes, it must have 32"),
        ("num_rows", True, TypeError, "item 1: a number of tokens or rows must be an int, got True"),
        ("row_width", True, TypeError, "item 1: a number of tokens or rows must be an int, got True"),
        ("row_width", 0, ValueError, "item 1: row_width is 0, it must be at least 1"),
        ("digest", (b"",), TypeError, "item 1: digest must have 2 or 3 fields, got 1"),
    ],
)
def test_item_arrays_refuses_attributes_that_were_set_to_other_types(
    name: str, value: Any, error: type[Exception], message: str
) -> None:
    item = Item(None, Span(0, 1))
    setattr(item, name, value)
    with pytest.raises(error, match=message):
        ItemArrays((Item(None, None), item), Item)


def test_step_plan_refuses_bools_that_were_set_in_a_chunk() -> None:
    for name in ("start", "length", "token_offset"):
        chunk = Chunk([Item(None, Span(0, 2))], 0, 4)
        setattr(chunk, name, True)
        with pytest.raises(TypeError, match=f"{name} must be an int, got a bool"):
            native_plan([chunk], 8)


@pytest.mark.parametrize(
    ("hidden", "accepted"),
    [(0, {1: False, 2: True, 3: True, 4: False, 6: True}), (2, {2: True, 3: False, 6: True})],
)
def test_a_plan_accepts_the_widths_of_its_step(hidden: int, accepted: dict[int, bool]) -> None:
    if hidden == 0:
        accepted = {width: 6 % width == 0 for width in (1, 2, 3, 4, 5, 6)}
    for width, fits in accepted.items():
        chunks = [Chunk([Item(None, Span(0, 2), key=KEYS[0], row_width=width)], 0, 4)]
        plan = StepPlan(chunks, read_requests(chunks, Chunk), b"", 4, 6, hidden)
        assert plan.row_width(0) == width
        assert (plan.misfit(0) is None) == fits
        assert plan.key(0) == (KEYS[0] if fits else None)
        assert plan.unkeyed() == []  # rows of a misfit are never looked up, hashed or encoded
        if not fits:
            assert str(width) in str(plan.misfit(0))
            assert "6" in str(plan.misfit(0))


def test_items_of_one_key_and_other_widths_are_two_items() -> None:
    items = [
        Item(None, Span(2 * number, 2), key=KEYS[0], row_width=width)
        for number, width in enumerate([None, 2, 4, 2])
    ]
    chunks = [Chunk(items, 0, 8)]
    plan = StepPlan(chunks, read_requests(chunks, Chunk), b"", 8, 4)
    assert [plan.row_width(item) for item in range(len(plan))] == [4, 2]
    assert plan.duplicates(0) == [(0, 2)]
    assert [plan.find(KEYS[0], 2, width) for width in (4, 2, 1)] == [0, 1, None]


def test_a_plan_knows_the_ends_of_its_chunks_and_the_arrays_those_of_their_items() -> None:
    items = Items(
        [
            Item(None, [Span(0, 2), Span(9, 2)], key=KEYS[0], num_rows=2),
            Item(None, Span(20, 2), key=KEYS[0]),
            Item(None, Span(30, 3), key=KEYS[0]),
            Item(None, Span(40, 2)),
            Item(None, None),
        ]
    )
    chunks = [Chunk(items, 3, 4), Chunk(items, 8, 0)]
    plan = native_plan(chunks)
    assert [plan.stop(chunk) for chunk in range(2)] == [7, 8]
    with pytest.raises(IndexError, match="item 2 does not exist"):
        plan.stop(2)
    assert [items.arrays.last_stop(position, NAMESPACE) for position in range(5)] == [22, 22, 33, 42, 0]
