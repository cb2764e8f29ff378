"""Runs the Python blocks of a page as printed, in one namespace, and checks the effect of each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from typing import Any

from doc_pages.blocks import Block
from doc_pages.names import Names
from doc_pages.scenes import SCENES


def run_page(blocks: Sequence[Block]) -> list[str]:
    """Run the Python blocks, and return the effects that were checked.

    An effect is the trigger of a scene, an assertion of the block itself, or an output: a `text` block behind
    a Python block is compared with the output of that block.

    Raises
    ------
    AssertionError
        If a check of a scene fails, or an output differs from the one that the page shows.
    """
    names: Names = {"__name__": "page"}
    effects: list[str] = []
    printed = ""
    for block in blocks:
        if block.language == "python":
            printed = _run(block, names, effects)
        elif block.is_output:
            assert printed == block.code, f"{block.place} shows {block.code!r}, the block printed {printed!r}"
            effects.append("output")
    return effects


def _run(block: Block, names: Names, effects: list[str]) -> str:
    """Run one block, add its effects, and return its output."""
    scenes = [scene for scene in SCENES if scene.trigger in block.code]
    said = StringIO()
    code = "\n" * block.line + textwrap.dedent(block.code)  # so that a traceback has the line of the page
    with ExitStack() as stack, redirect_stdout(said):
        for scene in scenes:
            names |= stack.enter_context(scene.enter())
        exec(compile(code, block.page, "exec"), names)
        for scene in scenes:
            assert scene.check(names), f"{block.place}: {scene.trigger}: {_described(names)}"
    effects += [scene.trigger for scene in scenes]
    if "assert " in block.code:
        effects.append("assertion")
    return said.getvalue()


def _described(names: dict[str, Any]) -> str:
    """The counts of the caches and attachments of a page."""
    return "; ".join(f"{name}: {value.stats()}" for name, value in names.items() if hasattr(value, "stats"))
