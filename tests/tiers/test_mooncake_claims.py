"""Claims, replicas, generations and erasure in a Mooncake store, with two clients and writers that die."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from tiers.fake_scene import fetch, open_tier, store
from tiers.fake_store import FakeStore
from tiers.scene import name_of
from tiers.tier_cache import Clock

from vitcache.tiers import EntryName, FetchOutcome, MooncakeTier, mooncake_tier
from vitcache.tiers.mooncake_client import MooncakeError
from vitcache.tiers.mooncake_objects import generation_key, object_bytes, object_key

NAMES = [name_of(key) for key in range(3)]
KEYS = [object_key(name) for name in NAMES]
WEIGHTS = bytes(range(32))
NUMBER = generation_key(WEIGHTS)


@pytest.fixture
def two(fake: FakeStore) -> Iterator[tuple[MooncakeTier, MooncakeTier]]:
    """Two tiers that claim over the network, as two processes have."""
    tiers = (open_tier(fake, single_flight=True), open_tier(fake, single_flight=True))
    yield tiers
    for tier in tiers:
        tier.close()


def test_one_of_two_claims_an_entry_and_stores_it(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    first, second = two
    assert first.claim(NAMES[:2], 60.0) == [True, True]
    assert second.claim(NAMES, 60.0) == [False, False, True]
    assert first.claim(NAMES, 60.0) == [True, True, False]
    assert second.exists(NAMES) == [False] * 3
    assert second.store([]) == []
    assert store(second, NAMES[0]) == [False]  # it is not its own
    assert store(first, NAMES[0]) == [True]
    assert second.exists(NAMES) == [True, False, False]
    assert first.claim(NAMES[:1], 60.0) == second.claim(NAMES[:1], 60.0) == [False]
    assert store(second, NAMES[0]) == [True]  # it is there
    assert fetch(second, NAMES[0])[0] == [FetchOutcome.HIT]
    assert fake.calls["put"] == 0


def test_claim_of_a_tier_that_is_closed_is_free(two: tuple[MooncakeTier, MooncakeTier]) -> None:
    first, second = two
    first.claim(NAMES, 60.0)
    first.close()
    assert second.claim(NAMES, 60.0) == [True] * 3
    first.open()
    assert first.claim(NAMES, 60.0) == [False] * 3


def test_claim_whose_time_is_over_is_free_at_the_next_claim(
    two: tuple[MooncakeTier, MooncakeTier], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = two
    clock = Clock()
    monkeypatch.setattr(mooncake_tier, "time", SimpleNamespace(monotonic=clock, sleep=lambda seconds: None))
    first.claim(NAMES[:1], 10.0)
    clock.advance(9)
    first.claim(NAMES[1:2], 10.0)
    assert second.claim(NAMES[:2], 10.0) == [False, False]
    clock.advance(2)
    first.claim(NAMES[2:], 10.0)
    assert second.claim(NAMES, 10.0) == [True, False, False]


def test_lapsed_claim_is_of_the_next_process_and_the_late_write_stores_nothing(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    first, second = two
    first.claim(NAMES, 60.0)
    fake.lapse()
    assert second.claim(NAMES[:1], 60.0) == [True]
    assert store(first, NAMES[0]) == [False]  # -601
    assert first.exists(NAMES) == [False] * 3
    assert store(second, NAMES[0]) == [True]
    assert fetch(first, NAMES[0])[0] == [FetchOutcome.HIT]
    assert store(first, NAMES[1]) == [False]
    assert store(first, NAMES[1]) == [True]  # it begins again


def test_session_that_lapses_between_the_write_and_its_end_stores_nothing(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    first, second = two
    fake.plant("end", fake.lapse)
    assert store(first, NAMES[0]) == [False]
    assert second.claim(NAMES, 60.0) == [True] * 3


def test_entry_of_a_dead_writer_cannot_be_claimed_before_its_time_is_over(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    fake.begin_and_die(KEYS[0])
    assert two[0].claim(NAMES, 60.0) == [False, True, True]
    assert store(two[0], *NAMES) == [False, True, True]
    fake.lapse()
    assert two[1].claim(NAMES, 60.0) == [True, False, False]


@pytest.mark.parametrize(
    ("code", "claims"), [(-200, True), (-1700, True), (-601, True), (-703, False), (-705, False)]
)
def test_code_of_a_claim(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier], code: int, claims: bool
) -> None:
    fake.plant("start", code, KEYS[1])
    assert two[0].claim(NAMES, 60.0) == [True, claims, True]
    fake.plant("start", code, KEYS[1])
    assert store(two[0], *NAMES) == [True, False, True]  # a refused one is not written
    assert store(two[0], *NAMES) == [True] * 3


@pytest.mark.parametrize("code", [-1, -600, -800, -900, -901, 1])
@pytest.mark.parametrize("call", ["start", "ranges", "end"])
def test_failed_claim_or_write_of_a_session_raises(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier], call: str, code: int
) -> None:
    fake.plant(call, code, KEYS[0])
    with pytest.raises(MooncakeError, match="store an object"):
        store(two[0], *NAMES)
    fake.plant("start", code, KEYS[0])
    with pytest.raises(MooncakeError, match="begin to store an object"):
        two[1].claim([name_of(9), NAMES[0]], 60.0)


@pytest.mark.parametrize("code", [-200, -601, -703, -704, -1700])
@pytest.mark.parametrize("call", ["ranges", "end"])
def test_refused_write_of_a_session_is_not_stored(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier], call: str, code: int
) -> None:
    fake.plant(call, code, KEYS[0])
    assert store(two[0], NAMES[0]) == [False]


def test_write_that_failed_is_not_abandoned_as_its_bytes_may_still_arrive(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    first, second = two
    first.claim(NAMES, 60.0)
    fake.plant("ranges", -800)
    with pytest.raises(MooncakeError, match="-800"):
        store(first, *NAMES[:2])
    fake.plant("ranges", RuntimeError("of C++"))
    with pytest.raises(RuntimeError, match=r"of C\+\+"):
        store(first, NAMES[2])
    first.close()
    assert second.claim(NAMES, 60.0) == [False] * 3
    fake.lapse()
    assert second.claim(NAMES, 60.0) == [True] * 3


@pytest.mark.parametrize("single_flight", [False, True])
def test_entries_and_numbers_have_replicas_and_numbers_are_never_evicted(
    fake: FakeStore, single_flight: bool
) -> None:
    tier = open_tier(fake, replicas=3, single_flight=single_flight)
    assert store(tier, NAMES[0]) == [True]
    tier.generation(WEIGHTS)
    configs = {key: stored.config for key, stored in fake.objects.items()}
    assert {key: config.replica_num for key, config in configs.items()} == {KEYS[0]: 3, NUMBER: 3}
    assert {key: config.with_hard_pin for key, config in configs.items()} == {KEYS[0]: False, NUMBER: True}
    tier.revoke(WEIGHTS)
    assert (fake.objects[NUMBER].config.replica_num, fake.objects[NUMBER].config.with_hard_pin) == (3, True)
    tier.close()


def test_processes_agree_on_the_number_of_a_generation(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    first, second = two
    numbers = [first.generation(WEIGHTS)]
    assert second.generation(WEIGHTS) == numbers[0]
    for tier, other in (two, two[::-1]) * 3:
        numbers.append(tier.revoke(WEIGHTS))
        assert other.generation(WEIGHTS) == tier.generation(WEIGHTS) == numbers[-1]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 << 63 for number in numbers)


def test_lost_number_is_followed_by_a_new_one(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    before = two[0].generation(WEIGHTS)
    del fake.objects[NUMBER]
    after = two[1].generation(WEIGHTS)
    assert after != before
    assert two[0].generation(WEIGHTS) == after
    del fake.objects[NUMBER]
    assert two[0].revoke(WEIGHTS) not in (before, after)


def test_processes_that_write_the_first_number_at_once_agree(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    first, second = two
    found: list[int] = []
    fake.plant("put_one", lambda: found.append(second.generation(WEIGHTS)))
    assert first.generation(WEIGHTS) == found[0] == second.generation(WEIGHTS)


def test_processes_that_revoke_at_once_agree_on_a_new_number(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    first, second = two
    old = first.generation(WEIGHTS)
    found: list[int] = []
    fake.plant("upsert", lambda: found.append(second.revoke(WEIGHTS)))
    found.append(first.revoke(WEIGHTS))
    assert old not in found
    assert first.generation(WEIGHTS) == second.generation(WEIGHTS) == found[-1]


def test_number_that_can_be_read_only_later_is_waited_for(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    for nth in (2, 3, 4):
        fake.plant("get_one", -703, nth=nth)
    number = two[0].generation(WEIGHTS)
    assert fake.calls["get_one"] == 5
    assert two[1].generation(WEIGHTS) == number
    data = bytes(fake.objects[NUMBER].data)
    changed = (number ^ 1).to_bytes(8, "little")

    def show_old() -> None:
        fake.objects[NUMBER].data[:] = data

    def show_new() -> None:
        fake.objects[NUMBER].data[:] = changed

    fake.plant("get_one", show_old, nth=2)
    fake.plant("get_one", show_old, nth=3)
    fake.plant("get_one", show_new, nth=4)
    assert two[0].revoke(WEIGHTS) == number ^ 1


def test_number_of_a_dead_writer_raises_until_its_time_is_over(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]
) -> None:
    fake.begin_and_die(NUMBER)
    for call in (two[0].generation, two[1].revoke):
        with pytest.raises(RuntimeError, match="another process writes the object vc1/generation/"):
            call(WEIGHTS)
    fake.lapse()
    assert two[0].generation(WEIGHTS) == two[1].generation(WEIGHTS)


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("code", [0, -705])
def test_revoke_whose_write_stored_nothing_raises(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier], is_there: bool, code: int
) -> None:
    if is_there:
        number = two[0].generation(WEIGHTS)
    fake.plant("upsert", code)
    with pytest.raises(RuntimeError, match="has not finished"):
        two[0].revoke(WEIGHTS)
    assert not is_there or two[0].generation(WEIGHTS) == number
    assert not is_there or two[0].revoke(WEIGHTS) != number


@pytest.mark.parametrize("code", [-1, -200, -600, -800, -900, -901, -1700, 8])
def test_number_that_cannot_be_written_raises(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier], code: int
) -> None:
    fake.plant("put_one", code)
    with pytest.raises(MooncakeError, match=f"write a number: code {code}"):
        two[0].generation(WEIGHTS)
    number = two[0].generation(WEIGHTS)
    fake.plant("upsert", code)
    with pytest.raises(MooncakeError, match=f"write a number: code {code}"):
        two[0].revoke(WEIGHTS)
    assert two[0].generation(WEIGHTS) == number


@pytest.mark.parametrize("code", [-1, -600, -706, -800, -900, -901, 0, 7])
def test_number_that_cannot_be_read_raises_and_late_bytes_change_no_later_one(
    fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier], code: int
) -> None:
    number = two[0].generation(WEIGHTS)
    for call in (two[0].generation, two[0].revoke):
        fake.plant("get_one", code)
        with pytest.raises(MooncakeError, match=f"read a number: code {code}"):
            call(WEIGHTS)
    fake.write_late()
    assert two[0].generation(WEIGHTS) == two[1].generation(WEIGHTS) == number
    for call in ("put_one", "upsert"):  # the bytes arrive after the number to write
        fake.plant(call, lambda: fake.write_late() and None)
    assert two[0].generation(bytes(32)) < 1 << 63
    assert two[0].revoke(WEIGHTS) < 1 << 63


def odd_digests() -> list[bytes]:
    """Digests of bytes that mean something in a regular expression, and random ones."""
    odd = [b".*", b"[^/]", b"\n", b"\0", b"/", b"^$", b"\\", b"|", b"(", b"vc1/", b"generation", b"\xff"]
    return [(each * 32)[:32] for each in odd] + [random.Random(seed).randbytes(32) for seed in range(3)]


@pytest.mark.parametrize("number", range(len(odd_digests())))
def test_erase_removes_exactly_the_entries_of_a_tenant_or_a_key(fake: FakeStore, number: int) -> None:
    digests = odd_digests()
    chosen = digests[number]
    tier = open_tier(fake)
    other = digests[number - 1]
    names = [
        EntryName(tenant, weights, key, num_rows, 4)
        for tenant in (chosen, other)
        for key in (chosen, other)
        for weights in (chosen, other)
        for num_rows in (1, 2)
    ]
    for digest in digests:
        tier.generation(digest)
    numbers = {key: bytes(stored.data) for key, stored in fake.objects.items()}
    for tenant, key in ((chosen, None), (None, chosen), (chosen, chosen)):
        assert store(tier, *names) == [True] * 16
        left = [name for name in names if tenant not in (None, name.tenant) or key not in (None, name.key)]
        assert tier.erase(tenant=tenant, key=key) == 16 - len(left)
        assert set(fake.objects) == {object_key(name) for name in left} | set(numbers)
    assert tier.erase(tenant=bytes(31) + b"\1", key=None) == 0
    assert all(fake.objects[key].data == data for key, data in numbers.items())
    tier.close()


@pytest.mark.parametrize("code", [-1, -600, -900])
def test_failed_erase_raises(fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier], code: int) -> None:
    fake.plant("remove_by_regex", code)
    with pytest.raises(MooncakeError, match=f"remove objects: code {code}"):
        two[0].erase(key=bytes(32))


def test_object_has_a_header_and_the_rows(fake: FakeStore, two: tuple[MooncakeTier, MooncakeTier]) -> None:
    store(two[0], *NAMES)
    assert [len(fake.objects[key].data) for key in KEYS] == [object_bytes(name) for name in NAMES]
