"""Each test begins with the weights that its scheduler has loaded."""

from __future__ import annotations

import pytest

from vitcache.adapters.sglang.loaded_weights import LOADED


@pytest.fixture(autouse=True)
def original_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOADED, "are_original", True)
