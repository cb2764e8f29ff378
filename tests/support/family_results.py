"""Results of the tests of model families, for `tests/models_table.py`."""

from __future__ import annotations

import json
import os
from typing import Any


def note(**result: Any) -> None:
    """Append a result to the file that VITCACHE_FAMILY_RESULTS names. Without the variable, do nothing.

    One write per line: tests of several processes append to one file.
    """
    path = os.environ.get("VITCACHE_FAMILY_RESULTS")
    if path:
        import transformers

        line = json.dumps({"transformers": transformers.__version__, **result}) + "\n"
        with open(path, "a") as file:
            file.write(line)
