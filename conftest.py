"""Names for `pytest --doctest-modules`. tests/test_docstrings.py runs the same examples without this file.

Only a doctest asks for `doctest_namespace`, so this file costs other tests nothing.
"""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def doctest_namespace(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Names that the examples of a module use without making them; skips if a package is missing."""
    from tiny_models import MODULES_WITH_MODEL_EXAMPLES, names_of_model_examples

    if request.node.name.startswith("vitcache.adapters.prometheus."):
        pytest.importorskip("prometheus_client")
    if not request.node.name.startswith(MODULES_WITH_MODEL_EXAMPLES):
        return {}
    pytest.importorskip("transformers")
    return names_of_model_examples()
