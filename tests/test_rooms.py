"""The order of the rooms: imports go down only, and no two modules import each other, however far around.

docs/architecture.md has the same order in words and as a picture.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_ROOT_MODULES = 14

# The folders of csrc/ that a file of each may include from: its own, and these.
NATIVE = {
    "runtime": (),
    "ring": ("runtime",),
    "placement": ("ring",),
    "stand_in": ("runtime", "ring"),
    "python": ("runtime", "ring", "placement"),
}

# The lowest first. A module may import its own room and those below. `testing` is for tests alone.
ORDER = (
    *("testing", "errors", "_version", "lazy", "_native", "rows", "arguments"),
    *("device", "keys", "ring", "pages", "triton_kernels", "placement", "cache", "pipeline", "adapters"),
    *("metrics", "info", "demo"),
    *("bench.harness", "bench.traffic", "bench.chats", "bench.claims", "bench", "__main__"),
)
LOWEST_OF_USERS = "demo"  # from here on a module may use the package as callers do, by its public names

# What is imported by a name that is put together: by its user's choice of a command or a bench.
DYNAMIC = {"vitcache.lazy", "vitcache.__main__", "vitcache.bench.run", "vitcache.bench.plot"}
LOADERS = {"import_module", "__import__"}


def sources() -> dict[str, Path]:
    """Every module by the name under which it is imported."""
    found = {}
    for package, folder in (
        ("vitcache", ROOT / "vitcache"),
        ("vitcache.triton_kernels", ROOT / "triton_kernels"),
        ("vitcache.bench", ROOT / "bench"),
    ):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


def room_of(module: str) -> str:
    """The longest entry of `ORDER` that a module is in."""
    _, _, inside = module.partition(".")
    rooms = [room for room in ORDER if f"{inside}.".startswith(f"{room}.")]
    assert rooms, f"{module} is in no room of ORDER"
    return max(rooms, key=len)


@cache  # a test that plants one line parses one module
def imports(module: str, text: str, modules: frozenset[str]) -> list[tuple[int, str]]:
    """Line and target of every import of the package in a module: lazy ones, and names given as a string to
    a loader, included. A name that is a module stands for that module.
    """
    tree, found = ast.parse(text), []
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} is a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [name if name in modules else str(node.module) for name in names]
        elif isinstance(node, ast.Call) and _name(node.func) in LOADERS:
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            targets = [arg.value for arg in given if isinstance(arg, ast.Constant)]
            assert targets or module in DYNAMIC, f"{module}:{node.lineno} imports what cannot be seen here"
        elif _name(node) in LOADERS and id(node) not in called:
            raise AssertionError(f"{module}:{node.lineno} hands a loader on")
        found += [(node.lineno, name) for name in targets if str(name).partition(".")[0] == "vitcache"]
    return found


def _name(node: ast.AST) -> str:
    """The last part of a name or attribute."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def edges(texts: dict[str, str]) -> Iterator[tuple[str, int, str]]:
    """Every import between modules; the public table of `vitcache` itself may point anywhere."""
    modules = frozenset({*texts, "vitcache._native"})
    for module, text in texts.items():
        if module != "vitcache":
            for line, target in imports(module, text, modules):
                yield module, line, target


def upward_imports(texts: dict[str, str]) -> list[str]:
    """What breaks the order, in words."""
    wrong = []
    for module, line, target in edges(texts):
        here = room_of(module)
        is_user = ORDER.index(here) >= ORDER.index(LOWEST_OF_USERS)
        if target == "vitcache":
            if not is_user:
                wrong.append(f"{module}:{line} imports vitcache, and with it any room")
            continue
        there = room_of(target)
        if target == f"vitcache.{there}" and "= lazy_names(" in texts.get(target, "") and not is_user:
            wrong.append(f"{module}:{line} imports from {target}, not from the module that defines the name")
        elif here == there:
            continue
        elif there == "testing":
            wrong.append(f"{module}:{line} imports {target}, which is for tests alone")
        elif ORDER.index(there) > ORDER.index(here):
            wrong.append(f"{module}:{line} imports {target}: {there} is above {here}")
    return wrong


def find_circle(texts: dict[str, str]) -> list[str]:
    """Modules that import each other around a circle; none where there is none."""
    graph: dict[str, set[str]] = {}
    for module, _, target in edges(texts):
        if target != "vitcache":
            graph.setdefault(module, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {module: path.read_text() for module, path in sources().items()}


def test_imports_go_down_only(texts: dict[str, str]) -> None:
    assert upward_imports(texts) == []


def test_no_modules_import_each_other(texts: dict[str, str]) -> None:
    assert find_circle(texts) == []


def test_few_modules_lie_in_no_room() -> None:
    flat = sorted(path.name for path in (ROOT / "vitcache").glob("*.py"))
    assert len(flat) <= MOST_ROOT_MODULES, flat


def test_every_room_says_what_it_is_for(texts: dict[str, str]) -> None:
    for module, path in sources().items():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(texts[module])), module


def rooms_from_the_top() -> list[str]:
    """The folders that are rooms, without the tests' own."""
    return [room for room in reversed(ORDER) if (ROOT / "vitcache" / room).is_dir() and room != "testing"]


@pytest.mark.parametrize(
    ("page", "pattern", "is_downward"),
    [
        ("docs/architecture.md", "^ +{}/ +──▸", True),
        ("docs/architecture.md", "^\\| `{}/`", True),
        ("CONTRIBUTING.md", "`{}/`", False),
    ],
    ids=["the picture", "the table", "CONTRIBUTING"],
)
def test_pages_have_the_rooms_in_this_order(page: str, pattern: str, is_downward: bool) -> None:
    text = (ROOT / page).read_text()
    rooms = [room for room in rooms_from_the_top() if room != "demo" or "──▸" not in pattern]
    found = [re.search(pattern.format(room), text, re.M) for room in (rooms if is_downward else rooms[::-1])]
    assert all(found)
    places = [match.start() for match in found if match]
    assert places == sorted(places)


def test_the_picture_has_the_imports_that_there_are(texts: dict[str, str]) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawn = {
        room: set(re.findall(r"\w+", to)) for room, to in re.findall(r"^ +(\w+)/ +──▸ (.+)$", page, re.M)
    }
    rooms = {*rooms_from_the_top(), "triton_kernels"} - {"demo"}
    for room in rooms:
        there = {room_of(target) for module, _, target in edges(texts) if room_of(module) == room}
        assert drawn[room] & rooms == (there & rooms) - {room}, room


def test_of_placement_the_cache_knows_the_calibration_alone(texts: dict[str, str]) -> None:
    found = {
        target for module, _, target in edges(texts) if room_of(module) == "cache" and "placement" in target
    }
    assert found == {"vitcache.placement.calibration"}


def test_triton_kernels_import_nothing_else_of_the_package(texts: dict[str, str]) -> None:
    for module, line, target in edges(texts):
        if room_of(module) == "triton_kernels":
            assert room_of(target) == "triton_kernels", f"{module}:{line}"


@pytest.mark.parametrize(
    ("module", "planted", "found"),
    [
        ("vitcache.keys.content", "from vitcache.cache.stats import CacheStats", "cache is above keys"),
        ("vitcache.ring.ticket", "def f():\n    import vitcache.pipeline.plan", "pipeline is above ring"),
        ("vitcache.pages.pool", "from vitcache.placement import ops", "placement is above pages"),
        ("vitcache.device.streams", "import_module('vitcache.info')", "info is above device"),
        ("vitcache.device.streams", "import_module(name='vitcache.info')", "info is above device"),
        ("vitcache.device.streams", "__import__('vitcache.info')", "info is above device"),
        ("vitcache.device.streams", "import vitcache.info as f", "info is above device"),
        ("vitcache.bench.harness.timing", "import vitcache.bench.run", "bench is above bench.harness"),
        ("vitcache.testing.stand_in", "from vitcache import Span", "any room"),
        ("vitcache.adapters.session", "from vitcache.cache import EmbeddingCache", "that defines the name"),
        ("vitcache.cache.coordinator", "from vitcache.cache import CacheStats", "that defines the name"),
        ("vitcache.cache.index", "from vitcache import Span", "any room"),
        ("vitcache.cache.index", "from vitcache.testing import stand_in", "for tests alone"),
    ],
)
def test_a_planted_upward_import_is_found(
    texts: dict[str, str], module: str, planted: str, found: str
) -> None:
    [wrong] = upward_imports({**texts, module: f"{texts[module]}\n{planted}\n"})
    assert wrong.startswith(f"{module}:")
    assert found in wrong


@pytest.mark.parametrize(
    "planted",
    [
        "import_module('vitcache.' + name)",
        "import_module(f'vitcache.{name}')",
        "load = import_module",
        "f(importlib.import_module)",
    ],
)
def test_an_import_that_cannot_be_seen_is_refused(texts: dict[str, str], planted: str) -> None:
    module = "vitcache.device.streams"
    with pytest.raises(AssertionError, match=r"vitcache\.device\.streams:\d+ (imports what|hands a loader)"):
        upward_imports({**texts, module: f"{texts[module]}\n{planted}\n"})


def test_a_planted_circle_is_found(texts: dict[str, str]) -> None:
    module = "vitcache.cache.index"
    planted = {**texts, module: f"{texts[module]}\ndef f():\n    from vitcache.cache import ledger\n"}
    assert set(find_circle(planted)) == {"vitcache.cache.index", "vitcache.cache.ledger"}


FOREIGN = ("torch", "ATen", "c10", "cuda", "triton")
PYTHON = ("pybind11", "Python")


def test_native_includes_go_down_only_and_python_is_seen_in_one_room() -> None:
    files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(NATIVE)
    for path in files:
        room = path.parent.name
        for bracket, name in re.findall(r'^ *# *include *([<"])([^>"]+)', path.read_text(), re.M):
            if bracket == '"':
                assert name.partition("/")[0] in (room, *NATIVE[room]), f"{path.name} includes {name}"
            else:
                assert not name.startswith(FOREIGN), f"{path.name} includes {name}"
                assert room == "python" or not name.startswith(PYTHON), f"{path.name} includes {name}"
