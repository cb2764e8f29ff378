"""Damaged and hostile content in the folder of a disk tier: a miss, and nothing outside is touched."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiers.scene import name_of, rows_in, rows_of, store_rows, transfer_of

from vitcache.keys import digests
from vitcache.tiers import DiskTier, EntryName, FetchOutcome
from vitcache.tiers.header import file_bytes, place_of

HIT, MISS, DAMAGED = FetchOutcome.HIT, FetchOutcome.MISS, FetchOutcome.DAMAGED
NAME = name_of(1, 50, 100)
SECRET = b"a file outside of the tier" * 400


def path_of(root: Path, name: EntryName = NAME) -> Path:
    return root.joinpath("entries", *place_of(name))


def fetch(tier: DiskTier, name: EntryName = NAME) -> FetchOutcome:
    transfer = transfer_of(name)
    (outcome,) = tier.fetch([transfer])
    if outcome is HIT:
        assert np.array_equal(rows_in(transfer), rows_of(name))
    return outcome


@pytest.mark.parametrize(
    "position", [0, 9, 12, 16, 40, 70, 110, 130, 140, 170, 4095, 4096, 6000, 9095, 9096, -1]
)
def test_flipped_bit_anywhere_in_a_file_is_damage_that_is_removed_and_logged_once(
    tier: DiskTier, root: Path, position: int, caplog: pytest.LogCaptureFixture
) -> None:
    names = [NAME, name_of(2, 50, 100)]
    assert store_rows(tier, names) == [True, True]
    for name in names:
        content = bytearray(path_of(root, name).read_bytes())
        content[position] ^= 0x10
        path_of(root, name).write_bytes(content)
    with caplog.at_level(logging.ERROR, "vitcache.tiers"):
        outcomes = [fetch(tier, name) for name in names]
    is_damage = not 16 <= position < 32  # else another algorithm: a miss
    assert outcomes == [DAMAGED if is_damage else MISS] * 2
    assert len(caplog.records) == is_damage
    assert tier.metrics()["damaged"] == 2 * is_damage
    assert not path_of(root).exists()
    assert tier.metrics()["entries"] == 0
    assert store_rows(tier, names) == [True, True]
    assert fetch(tier) is HIT


@pytest.mark.parametrize("size", [0, 1, 4096, 8192, 4096 + 5000, 12288 - 1, 12288 + 1, 16384])
def test_file_of_another_size_is_damage(tier: DiskTier, root: Path, size: int) -> None:
    store_rows(tier, [NAME])
    assert file_bytes(NAME) == 12288
    os.truncate(path_of(root), size)
    assert tier.exists([NAME]) == [False]
    assert fetch(tier) is DAMAGED
    assert not path_of(root).exists()


@pytest.mark.parametrize(
    "other",
    [
        name_of(1, 50, 100, tenant=7),
        name_of(1, 50, 100, weights=7),
        name_of(257, 50, 100),
        name_of(1, 100, 50),
        name_of(1, 51, 100),
    ],
    ids=["tenant", "weights", "key", "shape", "rows"],
)
def test_file_of_another_entry_under_this_name_is_damage(
    tier: DiskTier, root: Path, other: EntryName
) -> None:
    store_rows(tier, [NAME, other])
    path_of(root, other).rename(path_of(root))
    assert fetch(tier) is DAMAGED
    assert fetch(tier, other) is MISS


def test_checksum_of_another_algorithm_is_a_miss_and_can_be_stored_again(
    tier: DiskTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for module in ("vitcache.keys.digests", "vitcache.tiers.header"):
            patch.setattr(f"{module}.ALGORITHM", "sha256")
        assert store_rows(tier, [NAME]) == [True]
        assert fetch(tier) is HIT
    if digests.ALGORITHM == "sha256":  # the package blake3 is not installed
        assert fetch(tier) is HIT
        return
    assert fetch(tier) is MISS
    assert tier.metrics()["damaged"] == 0
    assert store_rows(tier, [NAME]) == [True]
    assert fetch(tier) is HIT


def plant_link_to_file(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def plant_link_to_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside.parent)


def plant_hard_link(path: Path, outside: Path) -> None:
    path.hardlink_to(outside)


def plant_fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def plant_socket(path: Path, outside: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is limited to about 100 bytes
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)
        made.bind(f"../{'s' * 8}")
        os.rename(f"../{'s' * 8}", path)
    os.chdir(here)


def plant_folder(path: Path, outside: Path) -> None:
    path.mkdir()


def plant_full_folder(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"x")


PLANTS = {
    plant.__name__.removeprefix("plant_"): plant
    for plant in (
        plant_link_to_file,
        plant_link_to_folder,
        plant_hard_link,
        plant_fifo,
        plant_socket,
        plant_folder,
        plant_full_folder,
    )
}


@pytest.fixture(params=PLANTS)
def plant(request: pytest.FixtureRequest) -> Callable[[Path, Path], None]:
    return PLANTS[request.param]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A valid file of the entry, outside of the tier."""
    folder = tmp_path / "outside"
    folder.mkdir()
    other = DiskTier(tmp_path / "other", 1 << 20)
    other.open()
    store_rows(other, [NAME])
    other.close()
    path_of(tmp_path / "other").rename(folder / "secret")
    return folder / "secret"


def seen(outside: Path) -> tuple[list[str], bytes, int]:
    return sorted(os.listdir(outside.parent)), outside.read_bytes(), outside.stat().st_mode


def test_foreign_object_in_place_of_a_file_is_a_miss_and_the_outside_is_untouched(
    tier: DiskTier, root: Path, outside: Path, plant: Callable[[Path, Path], None]
) -> None:
    store_rows(tier, [NAME])
    path_of(root).unlink()
    before = seen(outside)
    plant(path_of(root), outside)
    assert fetch(tier) in (MISS, DAMAGED)
    can_store = plant is not plant_full_folder
    assert store_rows(tier, [NAME]) == [can_store]
    assert fetch(tier) in ((HIT,) if can_store else (MISS, DAMAGED))
    assert tier.erase(tenant=NAME.tenant) == can_store
    assert seen(outside) == before


@pytest.mark.parametrize("place", ["entries", "tenant", "shard", "tmp"])
def test_foreign_object_in_place_of_a_folder_is_a_miss_and_the_outside_is_untouched(
    tier: DiskTier, root: Path, outside: Path, plant: Callable[[Path, Path], None], place: str
) -> None:
    store_rows(tier, [NAME])
    file = path_of(root)
    target = {
        "entries": root / "entries",
        "tenant": file.parents[1],
        "shard": file.parent,
        "tmp": root / "tmp",
    }
    before = seen(outside)
    target[place].rename(root / "away")
    plant(target[place], outside)
    is_folder = plant in (plant_folder, plant_full_folder)
    assert fetch(tier) is (HIT if place == "tmp" else MISS)
    assert tier.exists([NAME]) == [place == "tmp"]
    stored = store_rows(tier, [NAME, name_of(2)])
    assert stored == ([True, True] if is_folder else [place == "tmp", place == "shard"])
    tier.erase(tenant=NAME.tenant)
    tier.erase(key=NAME.key)
    tier.close()
    tier.open()
    store_rows(tier, [NAME])  # with all steps of the sweep
    assert seen(outside) == before


@pytest.mark.parametrize("file", ["vitcache-index.db", "vitcache-index.db-wal", "vitcache-index.db-shm"])
def test_link_in_place_of_the_index_is_removed_and_the_outside_is_untouched(
    tier: DiskTier, root: Path, outside: Path, file: str
) -> None:
    store_rows(tier, [NAME])
    tier.close()
    (root / file).unlink(missing_ok=True)
    (root / file).symlink_to(outside)
    before = seen(outside)
    tier.open()
    assert store_rows(tier, [name_of(2)]) == [True]
    assert fetch(tier) is HIT
    assert tier.metrics()["entries"] == 2
    assert seen(outside) == before


@pytest.mark.parametrize(
    "plant", [plant_link_to_file, plant_fifo, plant_folder], ids=["link", "fifo", "folder"]
)
def test_foreign_object_in_place_of_a_generation_raises(
    tier: DiskTier, root: Path, outside: Path, plant: Callable[[Path, Path], None]
) -> None:
    tier.revoke(NAME.weights)
    (root / "generations" / NAME.weights.hex()).unlink()
    before = seen(outside)
    plant(root / "generations" / NAME.weights.hex(), outside)
    with pytest.raises(OSError, match=r"regular file|symbolic|Is a directory|device"):
        tier.generation(NAME.weights)
    with pytest.raises(OSError, match=r"regular file|symbolic|Is a directory|device"):
        tier.revoke(NAME.weights)
    assert seen(outside) == before


def test_only_the_owner_can_read_the_folder(tier: DiskTier, root: Path) -> None:
    store_rows(tier, [NAME])
    tier.revoke(NAME.weights)
    for path in (root, *root.rglob("*")):
        state = path.stat()
        assert stat.S_IMODE(state.st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert state.st_uid == os.geteuid()


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702, 0o1777])
def test_folder_that_other_users_can_write_is_refused_with_its_mode(root: Path, mode: int) -> None:
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(PermissionError, match=f"has mode {mode:03o}"):
        DiskTier(root, 1 << 20).open()
    root.chmod(0o755)
    tier = DiskTier(root, 1 << 20)
    tier.open()
    tier.close()


def test_folder_of_another_user_is_refused_with_both_users(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir(mode=0o700)
    owner = root.stat().st_uid
    monkeypatch.setattr("vitcache.tiers.folders.os.geteuid", lambda: owner + 1)
    with pytest.raises(PermissionError, match=f"user {owner} .* user {owner + 1}"):
        DiskTier(root, 1 << 20).open()


def test_path_of_a_file_is_refused(root: Path) -> None:
    root.write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        DiskTier(root, 1 << 20).open()
