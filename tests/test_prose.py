"""Counts the phrases that readers had to read twice, and limits their number.

docs/glossary.md says which word to use instead. `python tests/test_prose.py` prints every match, as
`make check` does. With files or folders as arguments, it prints only the matches in these.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# The package as users get it, and all other text of the repository. Each has its own limit.
PRODUCT = ("vitcache", "triton_kernels", "README.md")
REST = (
    "csrc",
    "bench",
    "tests",
    "docs",
    "examples",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CODE_OF_CONDUCT.md",
    "Makefile",
    "CMakeLists.txt",
    "conftest.py",
    "setup.py",
    "pyproject.toml",
    "requirements",
    ".ci",
    ".clang-tidy",
    ".github",
)
MAX_IN_PRODUCT = 15
MAX_IN_REST = 15
MAX_TEST_NAME = 80
# These two files quote the phrases.
QUOTING = ("docs/glossary.md", "tests/test_prose.py")

BEGIN = r"(?:^|[.:;!?] )"  # of a sentence
# A pattern ignores case, except in a part `(?-i:...)`.
PATTERNS = {
    "a clause as the subject": BEGIN + r"(?-i:What|Who|Whoever|Whatever|Whichever|Those that|Those who)\b",
    "a clause in place of a noun": r"\b(?-i:what)\b",
    "a person without a name": r"\b(?:nobody|whoever|somebody|no one|oneself|he likes)\b",
    "a group without a name": r"(?<!\band )\bothers\b",
    "a number without a name": r"\bso (?:many|much)\b",
    "a negated noun": r"\b(?:is|are|was|were|be) (?-i:none|no(?! longer))\b",  # None is a value
    "a type without a name": r"\bof another type\b|\b(?:no|is|not) such\b|\ba number is none\b",
    "an everyday verb": r"\b(?:goes|went|comes|came|gone)\b",
    "a state without a name": r"\bon (?:its|their|the) way\b|\bunder way\b|\bsets? aside\b|\bthe books\b",
    "memory that is called room": r"\b(?:make|makes|made|making|give|gives|no|has) room\b|\broom for\b",
    "a point that was not named": r"\b(?:has|have|had|was|were|been) passed\b|\bmeanwhile\b",
}
COMPILED = {reason: re.compile(pattern, re.I) for reason, pattern in PATTERNS.items()}


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
    """Join lines. A list item, a table row, a change of indentation or an empty line begins a paragraph."""
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
    """The comments and the strings of a module, as numbered lines.

    Adjacent literals are one string. A value in an f-string is written as `x`.
    """
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if comments and (comments[-1][0] != line - 1 or token.line[: token.start[1]].strip()):
                yield comments
                comments = []
            comments.append((line, token.string.lstrip("#").strip()))
    if comments:
        yield comments
    nodes = list(ast.walk(ast.parse(source)))
    # The literal parts of an f-string are constants, too: they are read with their f-string.
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "`x`" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            text = node.value
        else:
            continue
        first, *rest = text.split("\n")
        # The first line of a docstring belongs to the paragraph of the next line.
        indent = len(rest[0]) - len(rest[0].lstrip()) if rest else 0
        yield [(node.lineno + step, line) for step, line in enumerate([" " * indent + first, *rest])]


def c_texts(source: str) -> Iterator[list[tuple[int, str]]]:
    """The comments of a C++ file, and its string literals. Literals of adjacent lines are one text."""
    comments: list[tuple[int, str]] = []
    literals: list[tuple[int, str]] = []
    for block in re.finditer(r"/\*(.*?)\*/", source, re.S):
        first = source.count("\n", 0, block.start()) + 1
        yield [(first + step, line.strip(" *")) for step, line in enumerate(block.group(1).split("\n"))]
    for line, text in enumerate(source.splitlines(), 1):
        found = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
        code = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
        before, slashes, comment = code.partition("//")
        if comments and (not slashes or before.strip()):
            yield comments
            comments = []
        if slashes:
            comments.append((line, comment.strip()))
        if found and not text.lstrip().startswith("#"):
            literals.append((line, " ".join(found)))
        elif literals:
            yield literals
            literals = []
    for lines in (comments, literals):
        if lines:
            yield lines


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
    """The comments and the quoted texts of a shell script, a Makefile or a file of settings."""
    comments: list[tuple[int, str]] = []
    for line, text in enumerate(source.splitlines(), 1):
        code, comment = text, ""
        if found := re.search(r"(?:^|\s)#+(?: (.*))?$", text):
            code, comment = text[: found.start()], found.group(1) or ""
        if comments and code.strip():
            yield comments
            comments = []
        comments.append((line, comment))
        for quoted in re.finditer(r"\"([^\"]*)\"|'([^']*)'", code):
            yield [(line, quoted.group(1) or quoted.group(2) or "")]
    yield comments


READERS = {
    ".py": python_texts,
    ".pyi": python_texts,
    ".cpp": c_texts,
    ".h": c_texts,
    ".md": page_texts,
    ".sh": script_texts,
    ".toml": script_texts,
    ".txt": script_texts,
    ".yml": script_texts,
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
    "a group without a name": "The first is freed, the others stay.",
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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("docstring.py", '"""Raises if the key\n    is no bytes.\n    """\n'),
        ("concatenation.py", 'raise TypeError("the key is "\n    "no bytes")\n'),
        ("f_string.py", 'raise TypeError(f"{name} is no key of {length} bytes")\n'),
        ("stub.pyi", 'def f() -> None:\n    """The key is no bytes."""\n'),
        ("literals.cpp", 'throw Error("the key is "\n            "no bytes");\n'),
        ("block.cpp", "/* The key\n   is no bytes. */\n"),
        ("CMakeLists.txt", 'option(X "The key is no bytes" OFF)\n'),
        ("script.sh", 'fail "the key is no bytes"\n'),
        ("settings.toml", "select = []  # The key is no bytes.\n"),
    ],
)
def test_a_planted_phrase_is_found_in_wrapped_and_quoted_text(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / name).write_text(text)
    assert [match.phrase for match in find_matches(name)] == ["is no"]


def report(places: tuple[str, ...], limit: int | None = None) -> bool:
    """Print every match and the number of matches. Return whether the number is within the limit."""
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
