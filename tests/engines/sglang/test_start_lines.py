"""The lines of the log that an engine writes when it starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_runner.pool import Outcome

BUILDS = "builds the inputs_embeds of the steps of this scheduler"
KEEPS = "vitcache keeps the rows of Qwen3VLForConditionalGeneration: "
FIRST_STEP = "Prefill batch"


@pytest.mark.engines("vitcache", "stock", "disabled")
def test_engine_logs_the_sizes_and_options_once_before_its_first_step(
    outcome: Callable[[str], Outcome],
) -> None:
    output = outcome("vitcache").output
    assert output.index(BUILDS) < output.index(KEEPS) < output.index(FIRST_STEP)
    [line] = [line for line in output.splitlines() if KEEPS in line]
    assert "100 MiB on cpu (SGLANG_VLM_CACHE_SIZE_MB)," in line
    assert "3 deepstack levels" in line
    assert "tensor parallel rank 0 of 1" in line
    for name in ("stock", "disabled"):
        assert FIRST_STEP in outcome(name).output
        assert KEEPS not in outcome(name).output
