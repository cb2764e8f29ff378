"""Requests that cannot be answered right end alone: the engine goes on, and later answers are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Result = Callable[[str], dict[str, Any]]

pytestmark = pytest.mark.engines("qwen3-faults")


def test_requests_with_embeddings_or_metadata_alone_are_refused(result: Result) -> None:
    before, metadata, embeddings, after = result("qwen3-faults")["embeddings"]
    for refused in (metadata, embeddings):
        assert refused["tokens"] == []
        assert refused["ends"] == "error"
    assert after["tokens"] == before["tokens"]
    assert after["ends"] == "length"


def test_request_whose_rows_a_worker_has_lost_ends_with_an_error(result: Result) -> None:
    before, lost, after = result("qwen3-faults")["loss"]
    assert lost["ends"] == "error"
    assert lost["encodes"] == 0
    assert after["encodes"] == 1
    assert after["tokens"] == before["tokens"]


def test_weights_that_are_reloaded_alone_end_only_the_requests_that_use_old_rows(result: Result) -> None:
    before, first, after = result("qwen3-faults")["reload_alone"]
    assert first["ends"] == "error"
    assert after["encodes"] == 1
    assert after["ends"] == "length"
    assert after["tokens"] == before["tokens"]


def test_faults_are_counted(result: Result) -> None:
    counters = result("qwen3-faults")["counters"]
    assert counters["vllm:vitcache_losses"] == 1
    assert counters["vllm:vitcache_resets"] == 1
