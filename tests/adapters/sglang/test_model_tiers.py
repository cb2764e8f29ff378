"""The tiers below the host tier of a model's cache, and the name of its weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitcache.adapters.sglang import model_tiers
from vitcache.adapters.sglang.loaded_weights import LOADED
from vitcache.adapters.sglang.model_tiers import log_name, make_tiers, weights_name
from vitcache.adapters.sglang.options import Options

COMMIT = "0123456789abcdefABCD" * 2
DISK = Options(host_bytes=1 << 20, disk="/d", disk_bytes=1 << 20)
NAMED = Options(host_bytes=1 << 20, disk="/d", disk_bytes=1 << 20, weights_name="v1")
STORE = Options(host_bytes=1 << 20, mooncake="10.0.0.7:50051", mooncake_worth=None)
BOTH = replace(NAMED, mooncake="10.0.0.7:50051")


def serve(monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> None:
    """Set the arguments of SGLang's server."""
    given = {"model_path": "org/model", "revision": None, "lora_paths": None} | arguments
    monkeypatch.setattr(model_tiers, "server_arguments", lambda: SimpleNamespace(**given))


def name_of(options: Options = DISK) -> str | None:
    """The operator's part of the name."""
    name = weights_name(options)
    return None if name is None else name.rsplit(", ", 5)[0]


def test_name_of_the_options_precedes_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, revision=COMMIT)
    assert (name_of(NAMED), name_of()) == ("v1", COMMIT)


@pytest.mark.parametrize(
    "revision", [None, "", "main", COMMIT[:-1], f"{COMMIT}0", f"{COMMIT[:-1]}g", f"{COMMIT}\n"], ids=repr
)
def test_revision_that_is_no_commit_is_no_name(monkeypatch: pytest.MonkeyPatch, revision: Any) -> None:
    """A branch or a tag can have other weights later."""
    serve(monkeypatch, revision=revision)
    assert name_of() is None
    assert name_of(NAMED) == "v1"


def test_revision_of_a_folder_is_a_name_only_for_its_snapshot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SGLang reads the folder, whatever the revision is."""
    for name, wanted in (("model", None), (COMMIT, COMMIT)):
        (tmp_path / name).mkdir()
        serve(monkeypatch, revision=COMMIT, model_path=f"{tmp_path / name}/")
        assert name_of() == wanted


def test_revision_beside_adapters_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their ids are a part of the key, and stay if the weights of an adapter change."""
    serve(monkeypatch, revision=COMMIT, lora_paths=["adapter=/weights"])
    assert name_of() is None
    assert name_of(NAMED) == "v1"


def test_process_without_arguments_of_sglang_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_tiers, "server_arguments", lambda: None)
    assert weights_name(DISK) is None


def test_engines_of_another_number_of_ranks_have_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for tp_size in (1, 2, 8):
        monkeypatch.setattr(model_tiers, "parallel_value", lambda name, default, size=tp_size: size)
        names.add(weights_name(NAMED))
    monkeypatch.setattr(model_tiers, "num_encoder_ranks", lambda: 8)
    names.add(weights_name(NAMED))
    assert len(names) == 4


@pytest.mark.parametrize("package", ["sglang", "transformers", "torch"])
def test_engines_of_another_version_have_another_name(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """An encoder that a new version corrects has other rows."""
    before = weights_name(NAMED)
    monkeypatch.setattr(model_tiers, "installed_version", lambda name: "9" if name == package else "8")
    changed = weights_name(NAMED)
    monkeypatch.setattr(model_tiers, "installed_version", lambda name: "8")
    assert len({before, changed, weights_name(NAMED)}) == 3


def test_changed_weights_have_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, revision=COMMIT)
    LOADED.are_original = False
    assert [weights_name(options) for options in (DISK, NAMED)] == [None, None]


@pytest.mark.parametrize(
    ("options", "are_original", "level", "text"),
    [
        (NAMED, True, logging.INFO, "with the weights 'v1'"),
        (NAMED, False, logging.WARNING, "they were changed or flushed since the start"),
        (
            DISK,
            True,
            logging.WARNING,
            "set weights_name in VITCACHE_SGLANG_OPTIONS, or start",
        ),
    ],
)
def test_line_of_the_log_tells_what_a_restart_finds(
    caplog: pytest.LogCaptureFixture, options: Options, are_original: bool, level: int, text: str
) -> None:
    caplog.set_level(logging.INFO, "vitcache.adapters.sglang")
    LOADED.are_original = are_original
    log_name(options)
    [record] = caplog.records
    assert (record.levelno, text in record.getMessage(), "/d" in record.getMessage()) == (level, True, True)


@pytest.mark.parametrize(
    ("options", "places"),
    [(STORE, "the store of 10.0.0.7:50051"), (BOTH, "/d and the store of 10.0.0.7:50051")],
    ids=["store", "both"],
)
def test_line_of_the_log_names_every_tier(
    caplog: pytest.LogCaptureFixture, options: Options, places: str
) -> None:
    caplog.set_level(logging.INFO, "vitcache.adapters.sglang")
    log_name(options)
    assert f" of {places} after a restart" in caplog.text


def test_store_is_a_tier_alone_and_below_a_disk(tmp_path: Path) -> None:
    both = replace(BOTH, disk=str(tmp_path))
    tiers = [make_tiers(options) for options in (STORE, both)]
    assert [[tier.name for tier in each] for each in tiers] == [["mooncake"], ["disk", "mooncake"]]
    assert [each[-1].worth for each in tiers] == [None, 0.5]


def test_options_without_a_tier_have_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vitcache.adapters.sglang")
    log_name(Options())
    assert (tuple(make_tiers(Options())), caplog.records) == ((), [])


def test_each_cache_has_a_tier_of_its_own_over_one_folder(tmp_path: Path) -> None:
    options = Options(host_bytes=1, disk=str(tmp_path / "disk"), disk_bytes=3 << 20)
    tiers = [make_tiers(options)[0] for _ in range(2)]
    assert tiers[0] is not tiers[1]
    assert [tier.capacity_bytes for tier in tiers] == [3 << 20] * 2
    for tier in tiers:
        tier.open()
    for tier in tiers:
        tier.close()


def test_folder_that_cannot_be_opened_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        make_tiers(Options(host_bytes=1, disk=str(tmp_path / "file" / "disk"), disk_bytes=1 << 20))
