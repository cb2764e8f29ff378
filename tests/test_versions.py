"""The table of supported versions, and the note for a version outside of it."""

import pytest

from vitcache import versions

NOTE = " (vitcache supports 2.9 to 2.14, tested with 2.13)"


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
