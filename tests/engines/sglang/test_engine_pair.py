"""A real `Engine` with vitcache gives the tokens and the log probabilities of the engine without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Result = Callable[[str], dict[str, Any]]


@pytest.mark.engines("stock", "vitcache")
@pytest.mark.parametrize("step", ["chat", "swapped", "together", "prefix"])
def test_try(step: str, result: Result) -> None:
    a, b = result("stock")[step], result("vitcache")[step]
    for x, y in zip(a, b, strict=True):
        print({k: v for k, v in x.items() if "logp" not in k}, x["logprobs"])
        print({k: v for k, v in y.items() if "logp" not in k}, y["logprobs"])
        assert x["tokens"] == y["tokens"]
        assert x["logprobs"] == y["logprobs"]
        assert x["prompt_logprobs"] == y["prompt_logprobs"]


@pytest.mark.engines("stock", "vitcache")
def test_counts(result: Result) -> None:
    print(result("stock")["counts"], result("vitcache")["counts"], result("vitcache")["up_s"])
