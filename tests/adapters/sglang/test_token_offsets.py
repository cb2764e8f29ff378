"""`token_offsets`: the positions of requests in a batch, if they are known. `request_name`: their ids."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vitcache.adapters.sglang.token_offsets import token_offsets

A, B = object(), object()


def batch(requests: Any, lengths: Any) -> SimpleNamespace:
    return SimpleNamespace(mm_inputs=requests, extend_seq_lens_cpu=lengths)


@pytest.mark.parametrize(
    ("all_requests", "all_lengths", "requests", "num_tokens", "expected"),
    [
        ([A, B], [3, 4], [A, B], 7, [0, 3]),
        ([None, A, None, B, None], [2, 3, 5, 4, 1], [A, B], 15, [2, 10]),
        ([A, B], [3, 4], [A, B], 20, [0, 3]),  # padding behind
        ([A, B], [0, 4], [A, B], 4, [0, 0]),
        ([A, A], [3, 4], [A, A], 7, [0, 3]),
        ([None, None], [3, 4], [], 7, []),
        ([None, A], [3, 4, 9], [A], 16, [3]),  # more lengths than requests
    ],
)
def test_offsets_are_those_of_the_batch(
    all_requests: Any, all_lengths: Any, requests: Any, num_tokens: int, expected: list[int]
) -> None:
    lengths = [length for each, length in zip(all_requests, all_lengths, strict=False) if each is not None]
    assert token_offsets(batch(all_requests, all_lengths), requests, lengths, num_tokens) == expected


@pytest.mark.parametrize(
    "found",
    [None, batch(None, [3]), batch([A], None), batch([A, B], [3, 4]), batch([B], [3]), batch([A], [300])],
    ids=["no batch", "no requests", "no lengths", "of more requests", "of another request", "too long"],
)
def test_other_batch_needs_lengths_that_add_up(found: Any) -> None:
    """As for a part of a batch, which SGLang passes without the tokens of the other requests."""
    assert token_offsets(found, [A], [3], 3) == [0]
    assert token_offsets(found, [A], [3], 4) is None
    assert token_offsets(found, [A], [3, 1], 4) is None


def test_parts_of_a_batch_follow_one_another() -> None:
    assert token_offsets(batch([A, None, B], [3, 9, 4]), [B, A], [4, 3], 7) == [0, 4]


def test_lengths_in_tensors_give_one_position_for_each_request() -> None:
    """Each position must be an object of its own: the next one is not computed in place."""
    lengths = torch.tensor([3, 9, 4])
    assert token_offsets(batch([A, None, B], lengths), [A, B], lengths[::2], 16) == [0, 12]
