"""The result codes of a Mooncake store: their outcomes, the calls after them, and entries in groups."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiers.fake_scene import fetch, open_tier, store
from tiers.fake_store import FakeStore
from tiers.scene import name_of, rows_in, rows_of, transfer_of
from tiers.tier_cache import LONG

from vitcache.tiers import EntryName, FetchOutcome, MooncakeTier, mooncake_client, mooncake_objects
from vitcache.tiers.mooncake_client import MooncakeError
from vitcache.tiers.mooncake_objects import StoredObject, object_key

HIT, MISS, DAMAGED, UNSAFE = (
    FetchOutcome.HIT,
    FetchOutcome.MISS,
    FetchOutcome.DAMAGED,
    FetchOutcome.UNSAFE,
)
NAMES = [name_of(key) for key in range(5)]
KEYS = [object_key(name) for name in NAMES]
NUM_BYTES = mooncake_objects.object_bytes(NAMES[0])
MISSES = (-600, -703, -704, -707)
UNKNOWN = (-1, -200, -601, -705, -706, -800, -802, -900, -901, -1700, 0, 1, NUM_BYTES - 1, NUM_BYTES + 1)


@pytest.fixture(params=[0, 64 << 10], ids=["scattered", "gathered"])
def tier(
    request: pytest.FixtureRequest, fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MooncakeTier]:
    """An open tier, whose entries of a few hundred bytes are large or small."""
    monkeypatch.setattr(mooncake_objects, "_SMALL_BYTES", request.param)
    monkeypatch.setattr(mooncake_objects, "_HEAD_BYTES", request.param)
    made = open_tier(fake)
    yield made
    made.close()


def is_right(transfer: mooncake_objects.Transfer) -> bool:
    return np.array_equal(rows_in(transfer), rows_of(transfer.name))


@pytest.mark.parametrize(
    ("code", "outcome"),
    [*((code, MISS) for code in MISSES), (-801, DAMAGED), *((code, UNSAFE) for code in UNKNOWN)],
)
def test_code_of_a_read_gives_its_outcome(
    fake: FakeStore, tier: MooncakeTier, code: int, outcome: FetchOutcome
) -> None:
    assert store(tier, *NAMES) == [True] * 5
    fake.plant("get", code, KEYS[1])
    outcomes, fetches = fetch(tier, *NAMES)
    assert outcomes == [HIT, outcome, HIT, HIT, HIT]
    assert fake.write_late() == (NUM_BYTES if outcome is UNSAFE else 0)
    assert all(is_right(each) for number, each in enumerate(fetches) if number != 1)
    assert (KEYS[1] in fake.objects) == (outcome is not DAMAGED)
    assert fake.calls["remove"] == (outcome is DAMAGED)
    assert tier.metrics() == {"damaged": int(outcome is DAMAGED), f"code {code}": 1}
    assert fake.calls["close"] == 0
    tier.close()
    assert fake.write_late() == 0


@pytest.mark.parametrize(
    ("number", "outcomes", "num_calls"),
    [
        (1, [HIT, UNSAFE, MISS, MISS, MISS], 1),
        (2, [HIT, HIT, UNSAFE, HIT, MISS], 2),
        (4, [HIT, HIT, HIT, HIT, UNSAFE], 3),
    ],
)
def test_nothing_is_asked_after_a_read_that_may_still_write(
    fake: FakeStore,
    tier: MooncakeTier,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    outcomes: list[FetchOutcome],
    num_calls: int,
) -> None:
    store(tier, *NAMES)
    monkeypatch.setattr(mooncake_objects, "_MOST_ENTRIES", 2)
    for nth in (1, 2, 3):
        fake.plant("get", -800, KEYS[number], nth)
    found, fetches = fetch(tier, *NAMES)
    assert found == outcomes
    assert fake.calls["get"] == num_calls
    fake.write_late()
    assert all(is_right(each) for each, outcome in zip(fetches, outcomes, strict=True) if outcome is HIT)


@pytest.mark.parametrize("code", [*MISSES, -801])
def test_groups_after_a_miss_or_a_wrong_checksum_are_read(
    fake: FakeStore, tier: MooncakeTier, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store(tier, *NAMES)
    monkeypatch.setattr(mooncake_objects, "_MOST_ENTRIES", 2)
    fake.plant("get", code, KEYS[0])
    outcomes, _ = fetch(tier, *NAMES)
    assert outcomes == [DAMAGED if code == -801 else MISS, HIT, HIT, HIT, HIT]
    assert fake.calls["get"] == 3


@pytest.mark.parametrize("at", [0, 8, 40, 200, 4095, 4096, NUM_BYTES - 1])
def test_changed_byte_is_damage_and_the_object_is_removed(
    fake: FakeStore, tier: MooncakeTier, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    store(tier, *NAMES)
    fake.flip(KEYS[2], at)
    assert fetch(tier, *NAMES)[0] == [HIT, HIT, DAMAGED, HIT, HIT]
    assert fetch(tier, *NAMES)[0] == [HIT, HIT, MISS, HIT, HIT]
    assert tier.metrics()["damaged"] == 1
    assert store(tier, NAMES[2]) == [True]
    fake.flip(KEYS[2], at)
    assert fetch(tier, NAMES[2])[0] == [DAMAGED]
    assert caplog.text.count("does not match its checksum") == 1


def test_object_of_another_entry_is_damage(fake: FakeStore, tier: MooncakeTier) -> None:
    store(tier, *NAMES)
    fake.objects[KEYS[0]].data[:] = fake.objects[KEYS[1]].data
    assert fetch(tier, *NAMES[:2])[0] == [DAMAGED, HIT]
    assert KEYS[0] not in fake.objects


def test_object_of_another_size_is_no_hit(fake: FakeStore, tier: MooncakeTier) -> None:
    store(tier, *NAMES)
    fake.objects[KEYS[0]].data += b"more"
    del fake.objects[KEYS[1]].data[-1]
    assert fetch(tier, *NAMES[:3])[0] == [MISS, UNSAFE, HIT]


@pytest.mark.parametrize("code", [0, -704])
def test_damaged_object_that_has_left_is_removed(fake: FakeStore, tier: MooncakeTier, code: int) -> None:
    store(tier, *NAMES)
    fake.flip(KEYS[0], 4200)
    fake.plant("remove", code)
    assert fetch(tier, *NAMES)[0] == [DAMAGED, HIT, HIT, HIT, HIT]


@pytest.mark.parametrize("code", [-706, -900])
def test_damaged_object_that_cannot_be_removed_raises(fake: FakeStore, tier: MooncakeTier, code: int) -> None:
    store(tier, NAMES[0])
    fake.flip(KEYS[0], 4200)
    fake.plant("remove", code)
    with pytest.raises(MooncakeError, match=f"remove an object: code {code}"):
        fetch(tier, NAMES[0])


@pytest.mark.parametrize("code", [-1, -600, -900, -901])
def test_failed_look_up_raises(fake: FakeStore, tier: MooncakeTier, code: int) -> None:
    store(tier, NAMES[0])
    for call in (lambda: tier.exists(NAMES), lambda: tier.claim(NAMES, 1.0), lambda: store(tier, NAMES[0])):
        fake.plant("exist", code, KEYS[0])
        with pytest.raises(MooncakeError, match=f"look up objects: code {code}"):
            call()
    assert tier.exists(NAMES) == [True, False, False, False, False]
    assert tier.claim(NAMES, 1.0) == [False, True, True, True, True]


@pytest.mark.parametrize("code", [-200, -601, -703, -704, -1700])
def test_refused_write_is_not_stored(fake: FakeStore, tier: MooncakeTier, code: int) -> None:
    fake.plant("put", code, KEYS[1])
    assert store(tier, *NAMES) == [True, False, True, True, True]
    assert tier.metrics()[f"code {code}"] == 1
    assert store(tier, *NAMES) == [True] * 5


@pytest.mark.parametrize("code", [-1, -600, -706, -707, -800, -801, -900, -901, 1, NUM_BYTES])
def test_failed_write_raises(fake: FakeStore, tier: MooncakeTier, code: int) -> None:
    fake.plant("put", code, KEYS[1])
    with pytest.raises(MooncakeError, match=f"store an object: code {code}"):
        store(tier, *NAMES)


def test_write_that_returns_0_and_stores_nothing_is_not_stored(fake: FakeStore, tier: MooncakeTier) -> None:
    fake.begin_and_die(KEYS[1])
    assert store(tier, *NAMES) == [True, False, True, True, True]
    assert tier.exists(NAMES) == [True, False, True, True, True]
    assert fetch(tier, *NAMES)[0] == [HIT, MISS, HIT, HIT, HIT]
    fake.lapse()
    assert store(tier, *NAMES) == [True] * 5


def test_object_that_another_client_has_stored_counts_as_stored(fake: FakeStore, tier: MooncakeTier) -> None:
    store(tier, NAMES[0])
    fake.plant("put", -705, KEYS[0])
    fake.plant("put", -705, KEYS[1])
    assert store(tier, *NAMES) == [True, False, True, True, True]  # the other one has left


@pytest.mark.parametrize("call", ["get", "put", "exist", "remove_by_regex", "get_one", "register_buffer"])
def test_exception_of_the_engine_is_raised_and_a_new_client_works(
    fake: FakeStore, tier: MooncakeTier, call: str
) -> None:
    store(tier, *NAMES)
    fake.plant(call, RuntimeError("of C++"))
    with pytest.raises(RuntimeError, match=r"of C\+\+"):
        {
            "get": lambda: fetch(tier, *NAMES),
            "put": lambda: store(tier, *NAMES),
            "exist": lambda: tier.exists(NAMES),
            "remove_by_regex": lambda: tier.erase(key=NAMES[0].key),
            "get_one": lambda: tier.generation(bytes(32)),
            "register_buffer": lambda: tier.register(np.zeros(8, np.uint8)),
        }[call]()
    tier.close()
    tier.open()
    assert fetch(tier, *NAMES)[0] == [HIT] * 5
    assert len(fake.clients) == 2


def test_exception_in_a_later_group_is_raised_and_leaves_the_tier_usable(
    fake: FakeStore, tier: MooncakeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tier, *NAMES)
    monkeypatch.setattr(mooncake_objects, "_MOST_ENTRIES", 2)

    def fault() -> None:
        raise RuntimeError("of C++")

    fake.plant("get", fault, nth=2)
    with pytest.raises(RuntimeError, match=r"of C\+\+"):
        fetch(tier, *NAMES)
    outcomes, fetches = fetch(tier, *NAMES)
    assert outcomes == [HIT] * len(NAMES)
    assert all(is_right(each) for each in fetches)


@pytest.mark.parametrize("code", [-1, -600, -900])
def test_refused_registration_raises(fake: FakeStore, tier: MooncakeTier, code: int) -> None:
    fake.plant("register_buffer", code)
    with pytest.raises(MooncakeError, match=f"register 8 bytes: code {code}"):
        tier.register(np.zeros(8, np.uint8))
    tier.register(np.zeros(0, np.uint8))


@pytest.mark.parametrize("code", [-1, -900])
def test_refused_client_is_closed_and_the_tier_stays_closed(fake: FakeStore, code: int) -> None:
    tier = MooncakeTier(fake.address)
    fake.plant("setup", code)
    with pytest.raises(ConnectionError, match=f"refuses this client: code {code}"):
        tier.open()
    assert fake.calls["close"] == 1
    with pytest.raises(RuntimeError, match="is closed"):
        tier.exists([])
    tier.close()
    tier.open()
    assert store(tier, *NAMES) == [True] * 5
    tier.close()


def test_master_that_does_not_answer_is_found_without_the_engine(fake: FakeStore) -> None:
    tier = MooncakeTier(fake.address)
    fake.stop()
    with pytest.raises(ConnectionError, match="no Mooncake master answers"):
        tier.open()
    assert fake.clients == []
    fake.start()
    tier.open()
    tier.close()


def sized(*sizes: int) -> list[EntryName]:
    return [name_of(key, 1, size) for key, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (sized(*[1] * 3), [3]),
        (sized(*[1] * 4), [4]),
        (sized(*[1] * 5), [4, 1]),
        (sized(*[1] * 9), [4, 4, 1]),
        (sized(40_000 - 4096), [1]),
        (sized(40_000 - 4095), [1]),  # an entry above the limit has a call of its own
        (sized(1, 50_000, 1), [1, 1, 1]),
        (sized(20_000 - 4096, 20_000 - 4096, 0), [2, 1]),
        (sized(20_000 - 4096, 20_000 - 4095), [1, 1]),
        (sized(0, 0, 0, 0), [4]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value[0], int) else f"{len(value)} entries",
)
def test_calls_have_a_limit_of_entries_and_bytes(
    fake: FakeStore,
    tier: MooncakeTier,
    monkeypatch: pytest.MonkeyPatch,
    names: list[EntryName],
    expected: list[int],
) -> None:
    monkeypatch.setattr(mooncake_objects, "_MOST_ENTRIES", 4)
    monkeypatch.setattr(mooncake_objects, "_MOST_BYTES", 40_000)
    assert store(tier, *names) == [True] * len(names)
    outcomes, fetches = fetch(tier, *names)
    assert outcomes == [HIT] * len(names)
    assert all(is_right(each) for each in fetches)
    for call in ("put", "get"):
        assert [len(keys) for name, keys in fake.asked if name == call] == expected


@pytest.mark.parametrize("num_parts", [1, 9, 10, 11, 25])
def test_calls_have_a_limit_of_parts(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch, num_parts: int
) -> None:
    monkeypatch.setattr(mooncake_objects, "_SMALL_BYTES", 0)
    monkeypatch.setattr(mooncake_objects, "_MOST_PARTS", 10)
    tier = open_tier(fake)
    assert store(tier, *NAMES, num_parts=num_parts) == [True] * 5
    outcomes, fetches = fetch(tier, *NAMES, num_parts=num_parts)
    assert outcomes == [HIT] * 5
    assert all(is_right(each) for each in fetches)
    in_a_call = {1: [5], 9: [1] * 5, 10: [1] * 5, 11: [5], 25: [5]}[num_parts]  # more than 10 are gathered
    assert [len(keys) for name, keys in fake.asked if name == "get"] == in_a_call
    tier.close()


@pytest.mark.parametrize("num_bytes", [199, 200, 201])
@pytest.mark.parametrize("fetch_parts", [1, 2, 3])
def test_entry_is_read_in_other_parts_than_it_was_stored_in(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch, num_bytes: int, fetch_parts: int
) -> None:
    monkeypatch.setattr(mooncake_objects, "_SMALL_BYTES", 100)  # two parts of 200 bytes are not gathered
    tier = open_tier(fake)
    name = name_of(1, 1, num_bytes)
    assert store(tier, name) == [True]
    outcomes, (fetched,) = fetch(tier, name, num_parts=fetch_parts)
    assert outcomes == [HIT]
    assert is_right(fetched)
    tier.close()


def test_parts_of_a_small_entry_are_not_registered(fake: FakeStore) -> None:
    tier = open_tier(fake)
    assert tier.store([transfer_of(NAMES[0], rows_of(NAMES[0]))]) == [True]
    fetched = transfer_of(NAMES[0])
    assert tier.fetch([fetched]) == [HIT]
    assert is_right(fetched)
    fake.plant("get", -800)
    fetched = transfer_of(NAMES[0])
    assert tier.fetch([fetched]) == [UNSAFE]
    fake.write_late()
    assert set(rows_in(fetched).tolist()) == {0xFF}  # late bytes stay in the memory of the client
    tier.close()


def test_late_bytes_of_an_unsafe_call_reach_no_later_call(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = open_tier(fake)
    assert store(tier, *NAMES[:2]) == [True] * 2
    fake.plant("get", -800)
    assert fetch(tier, NAMES[0])[0] == [UNSAFE]
    is_intact = StoredObject.is_intact

    def then_late(self: StoredObject) -> bool:
        result = is_intact(self)
        assert fake.write_late() > 0
        return result

    monkeypatch.setattr(StoredObject, "is_intact", then_late)
    outcomes, (fetched,) = fetch(tier, NAMES[1])
    assert outcomes == [HIT]
    assert is_right(fetched)
    tier.close()


def test_rdma_without_a_device_is_refused(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mooncake_client, "_RDMA_DEVICES", tmp_path)
    tier = MooncakeTier(fake.address, protocol="rdma")
    with pytest.raises(ConnectionError, match="protocol is 'rdma', but this machine has no device in"):
        tier.open()
    assert fake.calls["setup"] == 0
    (tmp_path / "mlx5_0").touch()
    tier.open()
    tier.close()


def test_memory_of_calls_grows_from_group_to_group(
    fake: FakeStore, tier: MooncakeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sized(1, 5000, 90, 20_000, 100_000, 3, 9000)
    store(tier, *names)
    tier.close()
    tier.open()
    monkeypatch.setattr(mooncake_objects, "_MOST_ENTRIES", 1)
    outcomes, fetches = fetch(tier, *names)
    assert outcomes == [HIT] * len(names)
    assert all(is_right(each) for each in fetches)


@pytest.mark.parametrize("head", [0, 1, 99, 100, 101, 1000])
def test_first_rows_are_transferred_with_the_header(
    fake: FakeStore, tier: MooncakeTier, monkeypatch: pytest.MonkeyPatch, head: int
) -> None:
    monkeypatch.setattr(mooncake_objects, "_SMALL_BYTES", 0)
    monkeypatch.setattr(mooncake_objects, "_HEAD_BYTES", head)
    names = sized(1, 100, 200, 250, 5000)
    assert store(tier, *names) == [True] * len(names)
    outcomes, fetches = fetch(tier, *names)
    assert outcomes == [HIT] * len(names)
    assert all(is_right(each) for each in fetches)


def test_memory_of_the_client_is_kept_until_it_is_closed(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mooncake_objects, "_HEAD_BYTES", 1 << 20)
    made: list[weakref.ref[np.ndarray]] = []

    def noted(num_bytes: int) -> np.ndarray:
        memory = new_memory(num_bytes)
        made.append(weakref.ref(memory))
        return memory

    new_memory = mooncake_objects.new_memory
    for module in (mooncake_objects, mooncake_client):
        monkeypatch.setattr(module, "new_memory", noted)
    tier = open_tier(fake)
    for name in sized(1, 5000, 20_000, 100_000, 400_000):
        assert store(tier, name) == [True]
        assert fetch(tier, name)[0] == [HIT]
    tier.generation(bytes(32))
    gc.collect()
    assert len(made) >= 6
    assert all(each() is not None for each in made)  # the engine may still write it, after a failure
    tier.close()
    gc.collect()
    assert all(each() is None for each in made)


def test_fake_notes_calls_that_would_end_the_process(fake: FakeStore) -> None:
    client = fake.MooncakeDistributedStore()

    def from_a_second_thread() -> None:
        with pytest.raises(AssertionError):
            client.batch_is_exist(["key"])

    thread = threading.Thread(target=from_a_second_thread)
    thread.start()
    thread.join(LONG)
    fake.plant("exist", lambda: client.close() and None)
    with pytest.raises(AssertionError):
        client.batch_is_exist(["key"])
    with pytest.raises(AssertionError):
        client.batch_get_into(["key"], [4096], [8])
    client.close()
    with pytest.raises(AssertionError):
        client.batch_is_exist(["key"])
    assert [text.split(" ", 2)[2] for text in fake.mistakes] == [
        "called from a second thread",
        "called during exist",
        "at 0x1000 are not registered",
        "called after close",
    ]
    fake.mistakes.clear()
