"""The pages in docs/: docs/calls.md has every public call, and every link leads to a file and a heading."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import vitcache

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])


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
            names = [part.partition("=")[0] for part in arguments.split(", ") if part]
            known = ["...", *inspect.signature(call).parameters] if names and call is not None else names
            wrong += [f"{path}: {name}" for name in names if name not in known]
    assert wrong == []
