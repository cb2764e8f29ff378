"""Runs the Python blocks of a page as printed, in one namespace, and checks the effect of each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from doc_pages.blocks import Block
from doc_pages.scenes import SCENES, Names


def run_page(blocks: Sequence[Block]) -> list[str]:
    """Run the Python blocks, and return the triggers of the scenes whose checks passed.

    A `text` block behind a Python block is compared with the output of that block.

    Raises
    ------
    AssertionError
        If a check of a scene fails, or an output differs from the one that the page shows.
    """
    names: Names = {"__name__": "page"}
    checked: list[str] = []
    printed = ""
    for block in blocks:
        if block.language == "python":
            printed, passed = _run(block, names)
            checked += passed
        elif block.is_output:
            assert printed == block.code, f"{block.place} shows {block.code!r}, the block printed {printed!r}"
    return checked


def _run(block: Block, names: Names) -> tuple[str, list[str]]:
    scenes = [scene for scene in SCENES if scene.trigger in block.code]
    for scene in scenes:
        names |= scene.make()
    said = StringIO()
    code = "\n" * block.line + textwrap.dedent(block.code)  # so that a traceback has the line of the page
    with redirect_stdout(said):
        exec(compile(code, block.page, "exec"), names)
    for scene in scenes:
        assert scene.check(names), f"{block.place}: {scene.trigger}: {_described(names)}"
    return said.getvalue(), [scene.trigger for scene in scenes]


def _described(names: dict[str, Any]) -> str:
    """The counts of the caches and attachments of a page."""
    return "; ".join(f"{name}: {value.stats()}" for name, value in names.items() if hasattr(value, "stats"))
