"""The command `vllm serve` that README.md and docs/vllm.md print."""

from __future__ import annotations

import json
from typing import Any

from doc_pages.blocks import Block, blocks_of, commands_of

PAGES = ("README.md", "docs/vllm.md")


def printed_blocks() -> list[Block]:
    """The blocks that start a server. Each has this one command."""
    return [block for page in PAGES for block in blocks_of(page) if "vllm serve" in block.code]


def printed_flags(block: Block) -> list[str]:
    """The flags of the command, without the model."""
    [[vllm, serve, model, *flags]] = commands_of(block)
    assert (vllm, serve, model) == ("vllm", "serve", "$MODEL"), f"{block.place}: {vllm} {serve} {model}"
    return flags


def printed_options() -> dict[str, Any]:
    """The flags of the first block as options of `LLM`."""
    flags = printed_flags(printed_blocks()[0])
    names = [flag.removeprefix("--").replace("-", "_") for flag in flags[::2]]
    return {name: json.loads(value) for name, value in zip(names, flags[1::2], strict=True)}
