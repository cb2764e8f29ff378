"""The order of the rooms: a module imports from its own room and lower rooms, without import cycles.

docs/architecture.md shows the same order as a picture and as a table.
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
MAX_ROOT_MODULES = 14

# Folder of csrc/: the other folders that its files may include from.
NATIVE = {
    "runtime": (),
    "ring": ("runtime",),
    "placement": ("runtime", "ring"),
    "stand_in": ("runtime", "ring"),
    "cache": ("placement",),
    "pipeline": ("placement", "cache"),
    "python": ("runtime", "ring", "placement", "cache", "pipeline"),
}

# The lowest room is the first. A module may import from its own room and from lower ones. Only tests import
# `testing`.
ORDER = (
    *(
        "testing",
        "errors",
        "_version",
        "versions",
        "extras",
        "lazy",
        "_native",
        "rows",
        "arguments",
        "handles",
    ),
    *(
        "terminal",
        "device",
        "tracing",
        "keys",
        "ring",
        "pages",
        "tiers",
        "triton_kernels",
        "placement",
        "cache",
        "pipeline",
    ),
    "adapters",
    *("metrics", "info", "demo"),
    *(
        "bench.harness",
        "bench.traffic",
        "bench.chats",
        "bench.engines",
        "bench.sglang",
        "bench.claims",
        "bench",
        "__main__",
    ),
)
LOWEST_USER = "demo"  # this room and higher ones may import the public names, as callers do

# Modules that may compute the name of a module to import, for example from the chosen command.
DYNAMIC = {
    *("vitcache.lazy", "vitcache.__main__", "vitcache.bench.run", "vitcache.bench.plot"),
    # They import modules of vLLM.
    *("vitcache.adapters.vllm.internals", "vitcache.adapters.vllm.placed_models"),
}
LOADERS = {"import_module", "__import__"}


def sources() -> dict[str, Path]:
    """Return {import name: path} of every module."""
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
    """Return the longest entry of `ORDER` that contains a module."""
    _, _, inside = module.partition(".")
    rooms = [room for room in ORDER if f"{inside}.".startswith(f"{room}.")]
    assert rooms, f"ORDER lacks the room of {module}"
    return max(rooms, key=len)


@cache  # a test that plants a line then parses only the changed module
def imports(module: str, text: str, modules: frozenset[str]) -> list[tuple[int, str]]:
    """Return line and target of every import of vitcache in a module.

    Imports inside functions are included, and names that a loader gets as a string. If an imported name is a
    module, the target is that module.
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
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            targets = [argument.value for argument in arguments if isinstance(argument, ast.Constant)]
            assert targets or module in DYNAMIC, f"{module}:{node.lineno} computes the name of a module"
        elif _name(node) in LOADERS and id(node) not in called:
            raise AssertionError(f"{module}:{node.lineno} passes a loader on")
        found += [(node.lineno, name) for name in targets if str(name).partition(".")[0] == "vitcache"]
    return found


def _name(node: ast.AST) -> str:
    """Return the last part of a name or attribute, and an empty string for other nodes."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def edges(texts: dict[str, str]) -> Iterator[tuple[str, int, str]]:
    """Yield every import between modules, except those of `vitcache/__init__.py`, the public table."""
    modules = frozenset({*texts, "vitcache._native"})
    for module, text in texts.items():
        if module != "vitcache":
            for line, target in imports(module, text, modules):
                yield module, line, target


def upward_imports(texts: dict[str, str]) -> list[str]:
    """Return a description of each import that breaks the order."""
    wrong = []
    for module, line, target in edges(texts):
        room = room_of(module)
        is_user = ORDER.index(room) >= ORDER.index(LOWEST_USER)
        if target == "vitcache":
            if not is_user:
                wrong.append(f"{module}:{line} imports vitcache, and so any room")
            continue
        target_room = room_of(target)
        if target == f"vitcache.{target_room}" and "= lazy_names(" in texts.get(target, "") and not is_user:
            wrong.append(f"{module}:{line} imports from {target}, not from the module that defines the name")
        elif room == target_room:
            continue
        elif target_room == "testing":
            wrong.append(f"{module}:{line} imports {target}, which is for tests only")
        elif ORDER.index(target_room) > ORDER.index(room):
            wrong.append(f"{module}:{line} imports {target}: {target_room} is above {room}")
    return wrong


def find_cycle(texts: dict[str, str]) -> list[str]:
    """Return the modules of one import cycle, or an empty list."""
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


def test_imports_are_from_the_own_room_or_a_lower_room(texts: dict[str, str]) -> None:
    assert upward_imports(texts) == []


def test_modules_have_no_import_cycle(texts: dict[str, str]) -> None:
    assert find_cycle(texts) == []


def test_number_of_root_modules_is_within_the_limit() -> None:
    root_modules = sorted(path.name for path in (ROOT / "vitcache").glob("*.py"))
    assert len(root_modules) <= MAX_ROOT_MODULES, root_modules


def test_every_room_has_a_docstring(texts: dict[str, str]) -> None:
    for module, path in sources().items():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(texts[module])), module


def rooms_from_the_top() -> list[str]:
    """Return the rooms that are folders, from the highest to the lowest, except `testing`."""
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
def test_document_lists_the_rooms_in_order(page: str, pattern: str, is_downward: bool) -> None:
    text = (ROOT / page).read_text()
    rooms = [room for room in rooms_from_the_top() if room != "demo" or "──▸" not in pattern]
    found = [re.search(pattern.format(room), text, re.M) for room in (rooms if is_downward else rooms[::-1])]
    assert all(found)
    places = [match.start() for match in found if match]
    assert places == sorted(places)


def test_picture_shows_the_imports_between_rooms(texts: dict[str, str]) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawn = {
        room: set(re.findall(r"\w+", to)) for room, to in re.findall(r"^ +(\w+)/ +──▸ (.+)$", page, re.M)
    }
    rooms = {*rooms_from_the_top(), "triton_kernels"} - {"demo"}
    for room in rooms:
        imported = {room_of(target) for module, _, target in edges(texts) if room_of(module) == room}
        assert drawn[room] & rooms == (imported & rooms) - {room}, room


def test_cache_imports_only_the_calibration_of_placement(texts: dict[str, str]) -> None:
    found = {
        target for module, _, target in edges(texts) if room_of(module) == "cache" and "placement" in target
    }
    assert found == {"vitcache.placement.calibration"}


def test_triton_kernels_import_nothing_of_vitcache_but_themselves(texts: dict[str, str]) -> None:
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
        ("vitcache.cache.claims", "from vitcache import Span", "any room"),
        ("vitcache.cache.claims", "from vitcache.testing import stand_in", "for tests only"),
    ],
)
def test_upward_imports_finds_a_planted_import(
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
def test_imports_refuses_a_module_name_that_is_computed(texts: dict[str, str], planted: str) -> None:
    module = "vitcache.device.streams"
    with pytest.raises(
        AssertionError, match=r"vitcache\.device\.streams:\d+ (computes the name|passes a loader)"
    ):
        upward_imports({**texts, module: f"{texts[module]}\n{planted}\n"})


def test_find_cycle_finds_a_planted_cycle(texts: dict[str, str]) -> None:
    module = "vitcache.cache.claims"
    planted = {
        **texts,
        module: f"{texts[module]}\ndef f():\n    from vitcache.cache import embedding_cache\n",
    }
    assert set(find_cycle(planted)) == {"vitcache.cache.claims", "vitcache.cache.embedding_cache"}


FOREIGN = ("torch", "ATen", "c10", "cuda", "triton")
PYTHON = ("pybind11", "Python")


def test_native_includes_are_from_lower_folders_and_python_in_one_folder() -> None:
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
