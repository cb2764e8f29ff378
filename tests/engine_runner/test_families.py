"""The families of the tests with real engines: names, tokens and sizes of their small models."""

from __future__ import annotations

import pytest
from engine_runner.cases import CASES
from engine_runner.tiny_models import FAMILIES, Family
from engine_runner.tiny_models.family import COMMON, NUM_BYTES

from vitcache.adapters.vllm.architectures import ARCHITECTURES

EACH = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)


def test_each_placed_architecture_has_a_small_model() -> None:
    assert {(family.module, family.architecture) for family in FAMILIES.values()} >= set(
        ARCHITECTURES.values()
    )


def test_each_family_has_pairs_with_whole_prompts_and_in_chunks() -> None:
    forms = {name: [CASES[f"{name}-v2-{form}-vitcache"] for form in ("whole", "chunks")] for name in FAMILIES}
    for name, (whole, chunks) in forms.items():
        assert whole.model == chunks.model == name
        assert whole.num_batched_tokens > chunks.num_batched_tokens


@EACH
def test_special_tokens_have_ids_after_the_bytes_in_their_order(family: Family) -> None:
    tokens = [*COMMON, *family.special]
    assert [family.token(text) for text in tokens] == list(range(NUM_BYTES, NUM_BYTES + len(tokens)))
    assert family.text_config()["vocab_size"] == NUM_BYTES + len(tokens)
