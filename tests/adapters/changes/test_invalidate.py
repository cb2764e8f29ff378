"""`Attachment.invalidate` while other calls run, with a shared cache, and after `detach`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from attached import logits, pair, plain_kernels  # noqa: F401
from tiny_models import FAMILIES

from vitcache.adapters.transformers import Attachment, attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]
FAMILY = FAMILIES["internvl"]
FORGET: dict[str, Callable[[Attachment], None]] = {
    "invalidate": Attachment.invalidate,
    "advance_epoch": lambda attachment: attachment.cache.advance_epoch(),
}


def scale(*models: Any) -> None:
    """Write through `.data`, which `attach` does not notice."""
    for model in models:
        for weight in model.base_model.vision_tower.parameters():
            weight.data.mul_(1.5)


@contextmanager
def stopped_encode(model: Any, prompt: Any) -> Iterator[list[Tensor]]:
    """Run a call of the model in a thread that waits inside of its encode, until the block ends.

    The logits of the call are in the list after the block.
    """
    has_rows, may_go = threading.Event(), threading.Event()
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(logits(model, prompt)))

    def wait(*_: Any) -> None:
        if threading.current_thread() is thread:
            has_rows.set()
            assert may_go.wait(30)

    handle = model.base_model.vision_tower.register_forward_hook(wait)
    logits(model, FAMILY.prompt(model, 1))  # notices the hook; the prompt has another image
    thread.start()
    try:
        assert has_rows.wait(30)
        yield found
    finally:
        may_go.set()
        thread.join(30)
        handle.remove()


@pytest.mark.parametrize("forget", FORGET.values(), ids=FORGET)
def test_rows_of_an_encode_that_began_before_are_not_found_later(
    forget: Callable[[Attachment], None],
) -> None:
    stock, model, attachment, _ = pair(FAMILY)
    prompt = FAMILY.prompt(model, 0)
    before = logits(stock, prompt)
    with stopped_encode(model, prompt) as found:
        scale(stock, model)
        forget(attachment)
    assert not torch.equal(before, logits(stock, prompt))
    assert torch.equal(found[0], before)
    assert torch.equal(logits(model, prompt), logits(stock, prompt))


def test_call_that_begins_after_invalidate_does_not_wait_for_an_earlier_encode() -> None:
    stock, model, attachment, _ = pair(FAMILY)
    prompt = FAMILY.prompt(model, 0)
    with stopped_encode(model, prompt):
        scale(stock, model)
        attachment.invalidate()
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(logits, model, prompt)
            assert torch.equal(later.result(30), logits(stock, prompt))


def test_calls_of_threads_that_invalidate_all_the_time_are_stock() -> None:
    stock, model, attachment, _ = pair(FAMILY)
    prompt = FAMILY.prompt(model, 0)
    expected = logits(stock, prompt)

    def call(number: int) -> bool:
        if number % 2:
            attachment.invalidate()
        return torch.equal(logits(model, prompt), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(40)))


def attached_to(cache: Any) -> tuple[nn.Module, Attachment]:
    model = FAMILY.model()
    return model, attach(model, cache, namespace="one name")


def test_other_attachment_of_the_cache_keeps_its_entries_and_shares_none_any_more() -> None:
    stock, first, own, _ = pair(FAMILY, namespace="one name")
    second, other = attached_to(own.cache)
    prompt = FAMILY.prompt(first, 0)
    expected = logits(stock, prompt)
    for model in (first, second, second):
        assert torch.equal(logits(model, prompt), expected)
    encoded = other.stats().encoded
    scale(first, stock)
    own.invalidate()
    assert torch.equal(logits(first, prompt), logits(stock, prompt))
    assert torch.equal(logits(second, prompt), expected)
    assert other.stats().encoded == encoded
    own.cache.advance_epoch()
    assert torch.equal(logits(second, prompt), expected)
    assert other.stats().encoded == encoded + 1


def test_invalidate_after_detach_or_close_does_nothing() -> None:
    stock, model, attachment, _ = pair(FAMILY)
    prompt = FAMILY.prompt(model, 0)
    logits(model, prompt)
    attachment.detach()
    attachment.invalidate()
    later = attach(model, attachment.cache)
    logits(model, prompt)
    attachment.invalidate()
    assert torch.equal(logits(model, prompt), logits(stock, prompt))
    assert (later.stats().encoded, later.stats().hits, later.stats().changes) == (1, 1, {})
    later.detach()
    later.cache.close()
    later.invalidate()
