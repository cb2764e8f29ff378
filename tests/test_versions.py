"""The table of supported versions, its note for other versions, and the folders of versions for tests."""

import re
from pathlib import Path

import pytest

from vitcache import versions

ROOT = Path(__file__).parents[1]
NOTE = f" (vitcache supports 2.9 to 2.14, tested with {versions.versions_of_tests('torch')})"


@pytest.mark.parametrize(
    ("installed", "note"),
    [
        ("2.8.1", NOTE),
        ("2.9.0", ""),
        ("2.13.0+cpu", ""),
        ("2.14.1", ""),
        ("2.10rc1", ""),
        ("2.14a0", ""),
        ("2.8rc1", NOTE),
        ("2.15.0a0+git", NOTE),
        ("3.0", NOTE),
        ("3", NOTE),
        ("main", NOTE),
        ("", NOTE),
    ],
)
def test_support_note_is_empty_for_supported_versions_only(installed, note):
    assert versions.support_note("torch", installed) == note


def test_tested_versions_are_supported_versions():
    for name, tested in versions.TESTED.items():
        assert not any(versions.support_note(name, version) for version in tested)
    assert versions.TESTED.keys() == versions.SUPPORTED.keys()


def test_tested_versions_are_written_in_words(monkeypatch):
    monkeypatch.setattr(versions, "TESTED", {"one": ("1",), "two": ("1", "2"), "three": ("1", "2", "3")})
    assert [versions.versions_of_tests(name) for name in versions.TESTED] == ["1", "1 and 2", "1, 2 and 3"]


def test_overlays_are_found_by_programs_that_a_test_starts_in_another_folder():
    paths = re.findall(r'PYTHONPATH="([^"]*overlays[^"]*)"', (ROOT / "tests/run.sh").read_text())
    assert paths
    assert [path for path in paths if any(not part.startswith("$PWD/") for part in path.split(":"))] == []
