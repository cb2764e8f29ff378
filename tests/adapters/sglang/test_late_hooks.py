"""`LateHooks`: modules report their first import, whatever looks for them before."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from vitcache.adapters.sglang.late_hooks import LateHooks

NAME = "late_hooks_module"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    (tmp_path / f"{NAME}.py").write_text("value = 3\n")
    yield tmp_path
    sys.modules.pop(NAME, None)


@pytest.fixture
def reports(folder: Path) -> list[Any]:
    found: list[Any] = []
    LateHooks({NAME}, lambda name: found.append((name, sys.modules[name].value))).install()
    return found


def test_import_is_reported_once_after_the_module_has_run(reports: list[Any]) -> None:
    module = importlib.import_module(NAME)
    importlib.import_module(NAME)
    assert reports == [(NAME, 3)]
    del sys.modules[NAME]
    importlib.import_module(NAME)
    assert reports == [(NAME, 3)]
    assert module.value == 3


def test_imported_module_has_the_loader_spec_and_file_that_it_has_without_hooks(
    folder: Path, reports: list[Any]
) -> None:
    hooked = importlib.import_module(NAME)
    del sys.modules[NAME]
    plain = importlib.import_module(NAME)
    assert type(hooked.__loader__) is type(plain.__loader__)
    assert type(hooked.__spec__.loader) is type(plain.__spec__.loader)
    assert hooked.__file__ == plain.__file__ == str(folder / f"{NAME}.py")
    assert hooked.__spec__.origin == plain.__spec__.origin


def test_search_without_an_import_reports_nothing_and_loses_no_hook(reports: list[Any]) -> None:
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    assert reports == []
    importlib.import_module(NAME)
    assert len(reports) == 1


def test_failed_import_reports_nothing_and_the_next_one_is_reported(folder: Path, reports: list[Any]) -> None:
    (folder / f"{NAME}.py").write_text("raise ImportError('missing')\n")
    with pytest.raises(ImportError, match="missing"):
        importlib.import_module(NAME)
    assert reports == []
    (folder / f"{NAME}.py").write_text("value = 'mended'\n")
    importlib.invalidate_caches()
    importlib.import_module(NAME)
    assert reports == [(NAME, "mended")]


def test_missing_module_raises_as_without_hooks(reports: list[Any], folder: Path) -> None:
    (folder / f"{NAME}.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match=NAME):
        importlib.import_module(NAME)
    assert reports == []


def test_finder_that_asks_all_finders_does_not_recurse(reports: list[Any]) -> None:
    class Curious:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
            if name == NAME:
                seen.append(
                    [finder.find_spec(name, path, target) for finder in sys.meta_path if finder is late]
                )
            return None

    seen: list[Any] = []
    late = sys.meta_path[0]
    sys.meta_path.insert(1, Curious)
    importlib.import_module(NAME)
    assert seen == [[None]]
    assert len(reports) == 1


def test_two_finders_each_report(reports: list[Any]) -> None:
    second: list[str] = []
    LateHooks({NAME}, second.append).install()
    importlib.import_module(NAME)
    assert (len(reports), second) == (1, [NAME])


def test_other_modules_are_not_reported(reports: list[Any], folder: Path) -> None:
    (folder / "late_hooks_neighbour.py").write_text("")
    importlib.import_module("late_hooks_neighbour")
    del sys.modules["late_hooks_neighbour"]
    assert reports == []


def test_error_of_the_report_leaves_the_import() -> None:
    def refuse(name: str) -> None:
        raise LookupError(name)

    finder = LateHooks({"colorsys"}, refuse)
    before = sys.modules.pop("colorsys", None)
    finders = list(sys.meta_path)
    finder.install()
    try:
        with pytest.raises(LookupError, match="colorsys"):
            importlib.import_module("colorsys")
        assert "colorsys" not in sys.modules
    finally:
        sys.meta_path[:] = finders
        if before is not None:
            sys.modules["colorsys"] = before
