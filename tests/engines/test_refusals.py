"""Wrong options end an engine at its start, with one line that says which option is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_runner.pool import Outcome

pytestmark = pytest.mark.full


def refused(name: str, *words: str) -> object:
    return pytest.param(name, words, id=name, marks=pytest.mark.engines(name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        # One image may have 64 rows: 4 pages of 16 rows.
        refused("device-below-an-item", "device_bytes", "4 pages", "3 pages"),
        refused("no-manager", "VitCacheManager", "--ec-manager-config"),
        refused("no-connector", "VitCacheConnector", "--ec-transfer-config"),
        refused("wrong-role", "ec_producer", "ec_both"),
        refused("unknown-option", "devise_bytes", "device_bytes"),
        refused("wrong-width", "row_width", "500", "512"),
    ],
)
def test_wrong_option_ends_the_engine_with_one_line_that_names_it(
    name: str, words: tuple[str, ...], outcome: Callable[[str], Outcome]
) -> None:
    found = outcome(name)
    assert found.code not in (0, None), found.tail()
    assert not found.is_cut, found.tail()
    lines = [line for line in found.output.splitlines() if all(word in line for word in words)]
    assert lines, found.tail()
