"""`attach`, `detach` and the replacement of a default cache, interrupted at each of their lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupts import act_at, interrupt
from torch import nn

pytest.importorskip("transformers")

from attached import GEMMA, image_rows, mixed, plain_kernels, stock_rows  # noqa: F401
from tiny_models import FAMILIES

from vitcache.adapters import attachment as attachment_module
from vitcache.adapters import forward_placement, replaced_methods, session, transformers
from vitcache.adapters.changes import optimizer_steps
from vitcache.adapters.transformers import Attachment, attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

FILES = {
    str(module.__file__)
    for module in (
        attachment_module,
        forward_placement,
        optimizer_steps,
        replaced_methods,
        session,
        transformers,
    )
}
OWN = "get_image_features"


def state(model: nn.Module) -> list[dict[str, Any]]:
    """The attributes of each module; dicts, such as those of hooks, are copied."""
    return [
        {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}
        for module in model.modules()
    ]


def model_with_own_method() -> nn.Module:
    """A model whose user replaced a stock method, which `detach` must restore."""
    model = GEMMA.model()
    setattr(model.model, OWN, getattr(model.model, OWN))
    return model


def lines_of(call: Any, files: Any = FILES) -> Iterator[int]:
    """Yield the numbers of lines until `call` was not interrupted. `call` takes the line."""
    line = 1
    while call(line, files):
        yield line
        line += 1
    assert line > 3


def test_attach_interrupted_at_any_line_leaves_the_stock_model_or_an_attached_one() -> None:
    model = model_with_own_method()
    before = state(model)
    made: list[Attachment] = []

    def attach_until(line: int, files: set[str]) -> bool:
        return interrupt(lambda: made.append(attach(model)), line, files)

    for line in lines_of(attach_until):
        assert not made, line
        attachment = attach(model)  # neither refused, nor over the remains of the first attempt
        assert len(model.model._forward_pre_hooks) == 1, line
        attachment.detach()
        assert state(model) == before, line
    made[0].detach()
    assert state(model) == before


def test_detach_interrupted_at_any_line_is_completed_by_a_second_detach() -> None:
    model = model_with_own_method()
    before = state(model)

    def detach_until(line: int, files: set[str]) -> bool:
        attachment = attach(model)
        is_interrupted = interrupt(attachment.detach, line, files)
        attachment.detach()
        return is_interrupted

    for line in lines_of(detach_until):
        assert state(model) == before, line


def test_model_whose_attachment_was_freed_can_be_attached_again() -> None:
    model = model_with_own_method()
    before = state(model)
    attach(model)  # as if an interrupt hit between `attach` and the assignment of its result
    with attach(model) as attachment:
        assert torch.equal(image_rows(model, GEMMA.call(0)), stock_rows(model, GEMMA.call(0)))
        assert attachment.stats().encoded > 0
    assert state(model) == before


@torch.no_grad()
def test_replacement_of_a_default_cache_interrupted_at_any_line_is_completed_later() -> None:
    family = FAMILIES["qwen2_5_vl"]

    def encode_until(line: int, files: set[str]) -> bool:
        model = mixed(torch.float32)
        attachment = attach(model, device_bytes=1 << 20)
        is_interrupted = interrupt(lambda: image_rows(model, family.call(0)), line, files)
        len(attachment.cache)  # raises RuntimeError if the cache is closed
        image_rows(model, family.call(0))
        assert attachment.cache.dtype == torch.float32, line
        assert len(attachment.cache) > 0, line
        attachment.detach()
        return is_interrupted

    assert len(list(lines_of(encode_until, {str(session.__file__)}))) > 10


@torch.no_grad()
def test_call_inside_of_the_first_call_gives_the_stock_rows_or_names_both_calls() -> None:
    call = GEMMA.call(0)
    expected = stock_rows(GEMMA.model(), call)
    files = {str(path) for path in Path(session.__file__).parent.rglob("*.py")}
    refused, line, is_called = [], 1, True
    while is_called:
        model = GEMMA.model()
        with attach(model, device_bytes=1 << 20):

            def call_again(model: nn.Module = model) -> None:
                try:
                    assert torch.equal(image_rows(model, call), expected)
                except RuntimeError as error:
                    refused.append(str(error))

            is_called = act_at(lambda model=model: image_rows(model, call), line, files, call_again)
            assert torch.equal(image_rows(model, call), expected), line
        line += 61
    assert line > 200
    assert refused
    for message in refused:
        assert message.startswith(f"{OWN} was called from inside {OWN}, which holds the first output"), (
            message
        )
