"""The fenced blocks of a page, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SHELL = ("bash", "sh", "console")


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is the line of its first fence, `after` the text behind the last block."""

    page: str
    line: int
    language: str
    code: str
    after: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_output(self) -> bool:
        """Whether the block shows the output of the block that ends on the line above it."""
        return self.language == "text" and not self.after.strip()


def pages() -> list[str]:
    """README.md and each page of docs/, relative to the repository."""
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return list(_blocks(page, (ROOT / page).read_text()))


def _blocks(page: str, text: str) -> Iterator[Block]:
    begin, language, code, between = 0, "", list[str](), list[str]()
    for line, content in enumerate(text.splitlines(), 1):
        fence = re.match(r" *```(\w*)", content)
        if fence and not begin:
            begin, language, code = line, fence[1], []
        elif fence:
            yield Block(page, begin, language, "\n".join(code) + "\n", "\n".join(between))
            begin, between = 0, []
        else:
            (code if begin else between).append(content)
    if begin:
        raise ValueError(f"{page}:{begin}: the block has no end")


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command of a shell block, without comments, prompts and variables that it sets."""
    found = []
    for line in block.code.replace("\\\n", " ").splitlines():
        for part in re.split(r" && | \| ", line.removeprefix("$ ")):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found
