"""The pages: every public call, links that lead to files and headings, versions and messages of the code."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import vitcache
from vitcache.adapters.sglang.start_up import TESTED_VERSIONS as SGLANG_VERSIONS
from vitcache.adapters.vllm.plugin import TESTED_VERSIONS
from vitcache.bench.run import BENCHES
from vitcache.versions import SUPPORTED, versions_of_tests

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
MOST_LINES_OF_README = 120
# Pages that tell of earlier versions.
OF_THE_PAST = ("CHANGELOG.md", "decisions.md", "migration.md")


def first_cells() -> list[str]:
    """The first cell of each row of the table in docs/calls.md."""
    lines = (ROOT / "docs/calls.md").read_text().splitlines()
    return [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]


def find(path: str) -> Any:
    """Return an object by its path: an attribute of vitcache, or of a module in it."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module) if module else vitcache, name)


def missing_calls(cells: list[str]) -> list[str]:
    """The calls in these cells that do not exist. A name with a dot belongs to the class above it."""
    missing: list[str] = []
    owner: Any = None
    for cell in cells:
        for code in re.findall(r"`([^`]+)`", cell):
            name = re.match(r"(\.?[\w.]+)", code)
            is_call = name is not None and not cell.startswith(
                ("options", "environment", "`key in", "`python")
            )
            if name is None or not is_call:
                continue
            try:
                if name[1].startswith("."):
                    known = {*dir(owner), *getattr(owner, "__annotations__", ()), *attributes(owner)}
                    assert name[1][1:] in known
                else:
                    owner = find(name[1])
            except (AttributeError, AssertionError, ImportError):
                missing.append(f"{getattr(owner, '__name__', '')}: {name[1]}")
    return missing


def attributes(owner: type) -> set[str]:
    """The instance attributes that the docstring of a class lists."""
    return set(re.findall(r"^    (?:[\w, ]*\b)?(\w+)(?:, \w+)*$", owner.__doc__ or "", re.M)) | {
        name
        for line in re.findall(r"^    (\w+(?:, \w+)*)$", owner.__doc__ or "", re.M)
        for name in line.split(", ")
    }


def test_table_of_calls_has_every_public_name_and_no_other_one() -> None:
    cells = first_cells()
    code = " ".join(cells)
    results = (ROOT / "docs/calls.md").read_text()
    absent = [name for name in vitcache.__all__ if not re.search(rf"\b{name}\b", code)]
    # A class that a caller only receives may be named as a result.
    absent = [name for name in absent if not re.search(rf"`{name}[`(]", results)]
    assert absent == ["__version__"]
    assert missing_calls(cells) == []


def test_missing_calls_finds_a_name_that_does_not_exist() -> None:
    cells = [
        "`EmbeddingCache(row_width)`",
        "`.put(key)`, `.nonsense()`",
        "`no_call()`",
        "`vitcache.nothing.x`",
    ]
    assert missing_calls(cells) == [
        "EmbeddingCache: .nonsense",
        "EmbeddingCache: no_call",
        "EmbeddingCache: vitcache.nothing.x",
    ]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize(
    "room",
    ["adapters", "pipeline", "cache", "placement", "triton_kernels", "pages", "ring", "keys", "device"],
)
def test_architecture_names_every_module_of_a_room(room: str) -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    folder = ROOT / room if room == "triton_kernels" else ROOT / "vitcache" / room
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert modules
    assert [name for name in modules if f"`{name}`" not in text] == []


def test_table_of_calls_names_only_arguments_that_exist() -> None:
    wrong: list[str] = []
    owner: Any = None
    for cell in first_cells():
        if cell.startswith(("options", "environment", "`key in", "`python")):
            continue
        for path, arguments in re.findall(r"`(\.?[A-Za-z_.]+)(?:\(([^`]*)\))?`", cell):
            call = getattr(owner, path[1:], None) if path.startswith(".") else find(path)
            owner = call if isinstance(call, type) else owner
            names = [part.partition("=")[0].lstrip("*") for part in arguments.split(", ") if part]
            known = ["...", *inspect.signature(call).parameters] if names and call is not None else names
            wrong += [f"{path}: {name}" for name in names if name not in known]
    assert wrong == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES_OF_README


def test_index_links_every_page() -> None:
    links = set(re.findall(r"\]\(([\w./]+\.md)\)", (ROOT / "docs/README.md").read_text()))
    pages = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert pages - links == set()
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()


def cells_of_versions() -> dict[str, list[str]]:
    """The cells behind the first one, by its first word, of the first table of docs/compatibility.md."""
    text = (ROOT / "docs/compatibility.md").read_text().split("\n## ", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {re.split(r"[ ,]", cells[0])[0]: cells[1:] for cells in rows}


def test_table_of_versions_has_those_of_the_code() -> None:
    cells = cells_of_versions()
    for package, (first, last) in SUPPORTED.items():
        name = {"triton": "Triton"}.get(package, package)
        assert cells[name][:2] == [f"{first} to {last}", versions_of_tests(package)]
    assert cells["vLLM"][0] == " and ".join(TESTED_VERSIONS)
    assert cells["SGLang"][0] == " and ".join(SGLANG_VERSIONS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cells["Python"][0].startswith(f"{project['requires-python'].removeprefix('>=')} or newer")


def wrong_versions(text: str) -> list[str]:
    """The ranges of versions in a text that are not those of versions.py, and other versions of engines."""
    found = [
        match[0]
        for match in re.finditer(
            r"\b(torch|triton|transformers) (\d+\.\d+)(?: to | or newer)(\d+\.\d+)?", text, re.I
        )
        if (match[2], match[3]) not in (SUPPORTED[match[1].lower()], (SUPPORTED[match[1].lower()][0], None))
    ]
    for engine, tested in (("vLLM", TESTED_VERSIONS), ("SGLang", SGLANG_VERSIONS)):
        versions = re.findall(rf"\b{engine} (\d+\.\d+\.\d+)", text)
        found += [f"{engine} {version}" for version in versions if version not in tested]
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in OF_THE_PAST], ids=lambda page: page.name
)
def test_no_page_states_versions_that_the_code_does_not_state(page: Path) -> None:
    assert wrong_versions(page.read_text()) == []


def test_wrong_versions_finds_a_range_and_versions_of_engines() -> None:
    text = (
        "torch 2.9 to 2.14, torch 2.9 or newer, transformers 5.17 to 5.24, Triton 3.4 or newer, "
        "vLLM 0.32.0, SGLang 0.5.22"
    )
    ranges = ["transformers 5.17 to 5.24", "Triton 3.4 or newer"]
    assert wrong_versions(text) == [*ranges, "vLLM 0.32.0", "SGLang 0.5.22"]


def test_page_on_measuring_names_every_bench() -> None:
    [names] = re.findall(r"^Benches: ([^.]+)\.", (ROOT / "docs/measuring.md").read_text(), re.M)
    assert re.findall(r"`(\w+)`", names) == sorted(BENCHES)


def messages_of_troubleshooting() -> list[str]:
    """The first cells of the tables of docs/troubleshooting.md whose first column is a message."""
    found = []
    for table in re.findall(
        r"^\| message \|.*\n(?:\|.*\n)+", (ROOT / "docs/troubleshooting.md").read_text(), re.M
    ):
        first_column = [line.split(" | ")[0] for line in table.splitlines()]
        found += [codes[-1] for cell in first_column if (codes := re.findall(r"`([^`]+)`", cell))]
    return found


def strings_of_code() -> list[str]:
    """The strings of the package. A value in an f-string is written as a NUL character."""
    nodes = [
        node for path in (ROOT / "vitcache").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    ]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
            texts.append("".join(map(str, parts)))
    return texts


def is_message_of(text: str, message: str) -> bool:
    """Whether `message` is a part of `text`, or the whole of it with any words in place of its values."""
    pattern = re.escape(text).replace("\0", r"\S+")
    return message in text or ("\0" in text and len(text) > 8 and re.fullmatch(pattern, message) is not None)


def test_messages_of_troubleshooting_are_messages_of_the_code() -> None:
    texts, messages = strings_of_code(), messages_of_troubleshooting()
    assert len(messages) > 5
    assert [message for message in messages if not any(is_message_of(text, message) for text in texts)] == []


def test_is_message_of_needs_the_words_of_the_code() -> None:
    assert is_message_of("raise \0_bytes", "raise host_bytes")
    assert not is_message_of("raise \0_bytes", "raise host_bytes or lower it")
