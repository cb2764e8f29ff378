"""Nothing outside of a tensor's storage is read or written: every call of `hostile_memory` raises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import hostile_memory
import pytest

NAMES = [name for name, _ in hostile_memory.cases()]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, str]]:
    """The exception of each call. A process of its own makes the calls, because a wrong read may end it."""
    command = [sys.executable, str(Path(hostile_memory.__file__))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    return {name: (kind, message) for name, kind, message in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", NAMES)
def test_call_with_memory_that_is_not_its_own_raises(name: str, outcomes: dict[str, tuple[str, str]]) -> None:
    kind, message = outcomes[name]
    assert kind == name.split()[0], message
    assert kind != "ValueError" or "storage" in message or "shares memory" in message
