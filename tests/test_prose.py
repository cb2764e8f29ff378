"""Prose is read once: phrases that had to be read twice are counted, and the limit is small.

docs/glossary.md says which word to use instead. `python tests/test_prose.py` prints every match, as
`make check` does; with files or folders, only theirs.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# The package as users get it, and all other text of the repository: each has its limit.
PRODUCT = ("vitcache", "triton_kernels", "README.md")
REST = (
    "csrc",
    "bench",
    "tests",
    "docs",
    "examples",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
    "setup.py",
)
MAX_IN_PRODUCT = 15
MAX_IN_REST = 15
MAX_TEST_NAME = 80
# These two quote the phrases.
QUOTING = ("docs/glossary.md", "tests/test_prose.py")

BEGIN = r"(?:^|[.:;!?] )"  # of a sentence
PATTERNS = {
    "a clause as the subject": BEGIN + r"(?:What|Who|Whoever|Whatever|Whichever|Those that|Those who)\b",
    "a clause in place of a noun": r"\bwhat\b",
    "a person without a name": r"\b(?:nobody|whoever|somebody|no one|oneself|he likes)\b",
    "a number without a name": r"\bso (?:many|much)\b",
    "a negated noun": r"\b(?:is|are|was|were|be) (?:no|none)\b",
    "a type without a name": r"\bof another type\b|\b(?:no|is|not) such\b|\ba number is none\b",
    "an everyday verb": r"\b(?:goes|went|comes|came|gone)\b",
    "a state without a name": r"\bon (?:its|their|the) way\b|\bunder way\b|\bsets? aside\b|\bthe books\b",
    "memory that is called room": r"\b(?:make|makes|made|making|give|gives|no|has) room\b|\broom for\b",
    "a point that was not named": r"\b(?:has|have|had|was|were|been) passed\b|\bmeanwhile\b",
}
COMPILED = {reason: re.compile(pattern, re.I) for reason, pattern in PATTERNS.items()}
# The case of the letter tells the two apart.
for reason in ("a clause as the subject", "a clause in place of a noun"):
    COMPILED[reason] = re.compile(PATTERNS[reason])


class Block(NamedTuple):
    """One paragraph, joined to a line."""

    path: str
    line: int
    text: str


class Match(NamedTuple):
    """One phrase in a block."""

    path: str
    line: int
    phrase: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}: {self.phrase!r}"


def paragraphs(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join lines. A list item, a table row, another indentation or an empty line begins a new paragraph."""
    current: list[str] = []
    first = indent = 0
    is_item = False
    for line, text in [*lines, (0, "")]:
        stripped = text.strip()
        begins_item = re.match(r"(?:[-*|#]|\d+\.|>>>|\.\.\.) ", stripped) is not None
        depth = len(text) - len(text.lstrip())
        if current and (
            not stripped or begins_item or (depth != indent and not (is_item and depth > indent))
        ):
            for cell in " ".join(current).split(" | "):
                yield first, cell.strip(" |#*->")
            current = []
        if stripped:
            if not current:
                first, indent, is_item = line, depth, begins_item
            current.append(stripped)


def python_texts(source: str) -> Iterator[list[tuple[int, str]]]:
    """The comments and the strings of a module, as numbered lines."""
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            if comments and (comments[-1][0] != line - 1 or token.line[: token.start[1]].strip()):
                yield comments
                comments = []
            comments.append((line, token.string.lstrip("#").strip()))
        elif token.type == tokenize.STRING:
            body = re.sub(r'^[a-zA-Z]*("""|\'\'\'|"|\')(.*)\1$', r"\2", token.string, flags=re.S)
            first, _, others = body.partition("\n")
            yield [(line, first), *((line + 1 + step, text) for step, text in enumerate(others.split("\n")))]
    if comments:
        yield comments


def c_texts(source: str) -> Iterator[list[tuple[int, str]]]:
    """The comments of a C++ file, and its string literals."""
    comments: list[tuple[int, str]] = []
    for line, text in enumerate(source.splitlines(), 1):
        literals = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
        code = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
        before, slashes, comment = code.partition("//")
        if comments and (not slashes or before.strip()):
            yield comments
            comments = []
        if slashes:
            comments.append((line, comment.strip()))
        if literals and not text.lstrip().startswith("#"):
            yield [(line, " ".join(literals))]
    if comments:
        yield comments


def page_texts(source: str) -> Iterator[list[tuple[int, str]]]:
    """The text of a page outside of code blocks."""
    lines: list[tuple[int, str]] = []
    in_code = False
    for line, text in enumerate(source.splitlines(), 1):
        if text.lstrip().startswith("```"):
            in_code = not in_code
        lines.append((line, "" if in_code or text.startswith("    ") else text))
    yield lines


def script_texts(source: str) -> Iterator[list[tuple[int, str]]]:
    """The comments of a shell script or Makefile."""
    yield [
        (line, text.lstrip("# ") if text.lstrip().startswith("#") else "")
        for line, text in enumerate(source.splitlines(), 1)
    ]


READERS = {
    ".py": python_texts,
    ".pyi": python_texts,
    ".cpp": c_texts,
    ".h": c_texts,
    ".md": page_texts,
    ".sh": script_texts,
    "": script_texts,
}


def blocks(*places: str) -> Iterator[Block]:
    """Every paragraph of files and folders."""
    for place in places:
        root = ROOT / place
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            name = path.relative_to(ROOT).as_posix()
            reader = READERS.get(path.suffix)
            if path.is_file() and reader is not None and name not in QUOTING:
                for lines in reader(path.read_text()):
                    for line, text in paragraphs(lines):
                        yield Block(name, line, re.sub(r"``?[^`]*``?", "`x`", text))


def find_matches(*places: str) -> list[Match]:
    """Every phrase of `PATTERNS` in these files and folders."""
    return [
        Match(block.path, block.line, " ".join(match.group().split()), reason)
        for block in blocks(*places)
        for reason, pattern in COMPILED.items()
        for match in pattern.finditer(block.text)
    ]


def names_of_tests() -> Iterator[tuple[str, str]]:
    """Path and name of every test."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.M):
            yield path.relative_to(ROOT).as_posix(), name


@pytest.mark.parametrize(
    ("places", "limit"), [(PRODUCT, MAX_IN_PRODUCT), (REST, MAX_IN_REST)], ids=["product", "rest"]
)
def test_phrases_that_are_read_twice_stay_below_the_limit(places: tuple[str, ...], limit: int) -> None:
    found = find_matches(*places)
    assert len(found) <= limit, "\n".join(map(str, found))


def test_every_test_name_is_short_and_names_its_subject() -> None:
    wrong = [
        f"{path}: {name}"
        for path, name in names_of_tests()
        if len(name) > MAX_TEST_NAME or re.match(r"test_(?:what|who|nobody|whatever|it)_", name)
    ]
    assert not wrong, "\n".join(wrong)


PLANTED = {
    "a clause as the subject": "Copies the rows. What is left over is freed.",
    "a clause in place of a noun": "Returns what was copied.",
    "a person without a name": "Then nobody waits.",
    "a number without a name": "Waits for so many rows.",
    "a negated noun": "TypeError: if `key` is no bytes.",
    "a type without a name": "If it is of another type.",
    "an everyday verb": "The entry goes to the host tier.",
    "a state without a name": "A copy that is under way.",
    "memory that is called room": "Evicts entries to make room.",
    "a point that was not named": "Once the event has passed.",
}


def test_a_planted_phrase_is_found_for_every_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    texts = {
        "a.py": '"""One line.\n\n{}\n"""\n',
        "b.py": "x = 1  # {}\n",
        "c.cpp": "int x;  // {}\n",
        "d.md": "# Title\n\n{}\n",
        "Makefile": "# {}\n",
    }
    for reason, sentence in PLANTED.items():
        for name, text in texts.items():
            (tmp_path / name).write_text(text.format(sentence))
            assert [match.reason for match in find_matches(name)] == [reason], (name, sentence)
    assert PLANTED.keys() == PATTERNS.keys()


def report(places: tuple[str, ...], limit: int | None = None) -> bool:
    """Print every match and their number; whether that is within the limit."""
    found = find_matches(*places)
    for match in found:
        print(match)
    print(len(found), "matches in", *places, *(() if limit is None else (f"(at most {limit})",)))
    return limit is None or len(found) <= limit


if __name__ == "__main__":
    if len(sys.argv) > 1:
        report(tuple(sys.argv[1:]))
    else:
        within = [report(PRODUCT, MAX_IN_PRODUCT), report(REST, MAX_IN_REST)]
        sys.exit(not all(within))
