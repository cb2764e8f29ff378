"""Names for `pytest --doctest-modules`. tests/test_docstrings.py runs the same examples without this file.

Only a doctest asks for `doctest_namespace`, so this file costs other tests nothing.
"""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def doctest_namespace(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Names that the examples of a module use without making them; skips if a package is missing."""
    from tiny_models import names_of_examples

    module = request.node.dtest.globs["__name__"]
    if module == "vitcache.adapters.prometheus":
        pytest.importorskip("prometheus_client")
    return names_of_examples(module)
