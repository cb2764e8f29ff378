"""A release: _version.py, CHANGELOG.md, CITATION.cff and docs/migration.md name one version and one date."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from vitcache._version import __version__

ROOT = Path(__file__).parents[1]
# The order of https://keepachangelog.com.
KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


class Release(NamedTuple):
    """One dated section of a changelog."""

    version: tuple[int, int, int]
    date: date
    kinds: list[str]


def parse_changelog(text: str) -> tuple[str, list[Release]]:
    """Return the text of the section `[Unreleased]`, and the dated sections in the order of the file.

    Raises ValueError if a heading has another form, or if its date is not a date.
    """
    _, *sections = re.split(r"^## ", text, flags=re.M)
    unreleased, *dated = (section.partition("\n") for section in sections)
    if unreleased[0] != "[Unreleased]":
        raise ValueError(f"the first section must be [Unreleased], got {unreleased[0]}")
    releases = []
    for heading, _, body in dated:
        found = re.fullmatch(r"\[?(\d+)\.(\d+)\.(\d+)\]? - (\S+)", heading)
        if found is None:
            raise ValueError(f"a heading must be '[1.2.3] - 2026-01-31', got {heading!r}")
        major, minor, patch, day = found.groups()
        version = (int(major), int(minor), int(patch))
        releases.append(Release(version, date.fromisoformat(day), re.findall(r"^### (.+)$", body, re.M)))
    return unreleased[2], releases


@pytest.fixture(scope="module")
def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def releases(changelog: str) -> list[Release]:
    return parse_changelog(changelog)[1]


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_newest_section_of_the_changelog_is_the_version_of_the_package(releases: list[Release]) -> None:
    assert ".".join(map(str, releases[0].version)) == __version__


def test_sections_of_the_changelog_are_sorted_by_version_and_by_date(releases: list[Release]) -> None:
    order = [(release.version, release.date) for release in releases]
    assert order == sorted(order, reverse=True)
    dates = [release.date for release in releases]
    assert dates == sorted(dates, reverse=True)


def test_kinds_of_changes_are_known_unique_and_in_order(changelog: str, releases: list[Release]) -> None:
    unreleased, _ = parse_changelog(changelog)
    for kinds in (re.findall(r"^### (.+)$", unreleased, re.M), *(release.kinds for release in releases)):
        assert kinds == [kind for kind in KINDS if kind in kinds]


def test_every_version_in_brackets_has_a_link_to_its_tag(changelog: str) -> None:
    headings = re.findall(r"^## \[(.+?)\]", changelog, re.M)
    links = dict(re.findall(r"^\[(.+?)\]: (\S+)$", changelog, re.M))
    assert list(links) == headings
    assert links.pop("Unreleased").endswith(f"/compare/v{__version__}...HEAD")
    assert all(url.endswith(f"/v{version}") for version, url in links.items())


def test_citation_names_the_version_and_date_of_the_changelog(
    citation: dict[str, Any], releases: list[Release]
) -> None:
    assert citation["version"] == __version__
    assert date.fromisoformat(str(citation["date-released"])) == releases[0].date


def test_migration_page_leads_to_the_version_of_the_package() -> None:
    title = (ROOT / "docs/migration.md").read_text().partition("\n")[0]
    assert title.endswith(f" to {__version__.rpartition('.')[0]}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("## [0.2.0] - 2026-11-29\n", "first section must be"),
        ("## [Unreleased]\n\n## [0.2.0]\n", "a heading must be"),
        ("## [Unreleased]\n\n## [0.2] - 2026-11-29\n", "a heading must be"),
        ("## [Unreleased]\n\n## [0.2.0] - 2026-11-31\n", "day"),
        ("## [Unreleased]\n\n## [0.2.0] - soon\n", "Invalid isoformat"),
    ],
)
def test_parse_changelog_refuses_a_heading_of_another_form(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_changelog(text)
