"""Names that the examples in docstrings use without making them: a small model, and inputs for it.

Only a doctest asks for `doctest_namespace`, so no other test imports transformers because of this file.
"""

from __future__ import annotations

from typing import Any

import pytest

NEEDS_PROMETHEUS = "vitcache.adapters.prometheus."
NEED_A_MODEL = (
    "vitcache.adapters.transformers.",
    "vitcache.adapters.model_pipeline.",
    "vitcache.adapters.chunked_prefill.",
)


@pytest.fixture
def doctest_namespace(request: pytest.FixtureRequest) -> dict[str, Any]:
    """`model` and `inputs` for the examples about transformers; skip examples whose package is missing."""
    name = request.node.name
    if name.startswith(NEEDS_PROMETHEUS):
        pytest.importorskip("prometheus_client")
    if not name.startswith(NEED_A_MODEL):
        return {}
    pytest.importorskip("transformers")
    from tiny_models import FAMILIES

    family = FAMILIES["qwen2_5_vl"]
    model = family.model()
    return {"model": model, "inputs": family.prompt(model, 0)}
