"""`ChunkedPrefill`, interrupted in a step, or run by a signal handler inside of its own step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from interrupts import act_at

pytest.importorskip("transformers")

from prefill_scene import Scene

from vitcache import Item
from vitcache.adapters import chunked_prefill, conversation, prefill_step, prefill_steps, transcript
from vitcache.adapters.transformers import ChunkedPrefill

pytestmark = pytest.mark.transformers

FILES = {
    str(module.__file__)
    for module in (chunked_prefill, conversation, prefill_step, prefill_steps, transcript)
}
IMAGES = ("image", 0), ("image", 1)


def stop() -> None:
    raise KeyboardInterrupt


def lines_of_prefill(scene: Scene, handler: Callable[[ChunkedPrefill], Callable[[], object]]) -> int:
    """Prefill with a handler at every third line, and compare the logits of the next prompt.

    Return the number of lines.
    """
    prompt, items = scene.prompt(*IMAGES)
    line, is_called = 1, True
    while is_called:
        chat = scene.chat()
        scene.assert_prefills(chat, prompt, items, reused=0)
        longer = scene.longer(prompt, *range(1, 12))
        with suppress(KeyboardInterrupt, RuntimeError):
            is_called = act_at(
                lambda chat=chat, ids=longer["input_ids"]: list(chat.chunks(ids, items)),
                line,
                FILES,
                handler(chat),
            )
        next_prompt = scene.longer(longer, 3)
        hidden = torch.cat(list(chat.chunks(next_prompt["input_ids"], items)), dim=1)
        with torch.no_grad():
            last = scene.model.lm_head(hidden[:, -1])
        expected = scene.stock_logits(next_prompt)[:, -1]
        torch.testing.assert_close(last, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        line += 3
    return line


def test_prefill_interrupted_at_any_line_leaves_a_right_kv_cache() -> None:
    assert lines_of_prefill(Scene("qwen3_vl"), lambda chat: stop) > 60


def test_prompt_of_a_signal_handler_inside_of_a_prefill_leaves_a_right_kv_cache() -> None:
    scene = Scene("qwen3_vl")
    other = torch.arange(20, 33)
    assert lines_of_prefill(scene, lambda chat: lambda: list(chat.chunks(other, []))) > 60


def test_prompt_inside_of_a_step_gets_its_logits_and_the_outer_prompt_raises() -> None:
    scene = Scene("qwen3_vl")
    prompt, items = scene.prompt(*IMAGES)
    chat, inner = scene.chat(), torch.arange(20, 33)
    got: list[torch.Tensor] = []

    def run_inner(*_: Any) -> None:
        handle.remove()
        got.append(chat.prefill(inner, _no_items()))

    handle = scene.model.model.language_model.layers[1].register_forward_hook(run_inner)
    with pytest.raises(RuntimeError, match="another prompt was run or reset"):
        chat.prefill(prompt["input_ids"], items)
    assert torch.equal(got[0], scene.chat().prefill(inner, _no_items()))
    scene.assert_prefills(chat, prompt, items, reused=0)


def _no_items() -> list[Item]:
    return []
