"""The examples in docstrings: each prints the output that it shows, and each public name has one."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_models import names_of_examples

PACKAGE = Path(__file__).parents[1] / "vitcache"
OPTIONAL = ("transformers", "triton", "prometheus_client", "skimage", "sklearn")
LEFT_OUT = ("bench", "demo")  # programs, whose modules are not imported by users
# The modules whose names README prints, with the public names of a module that has no `__all__`.
PUBLIC_NAMES: dict[str, tuple[str, ...]] = {
    "vitcache": (),
    "vitcache.adapters.transformers": (),
    "vitcache.adapters.distributed": ("agree_over",),
    "vitcache.metrics": (),
    "vitcache.tracing": ("enable", "disable", "is_enabled"),
}


def docstrings(source: str) -> list[tuple[str, int, str]]:
    """Name, line and text of each docstring that has an example. No module is imported."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and ">>>" in text:
                found.append((getattr(node, "name", "module"), node.body[0].lineno - 1, text))
    return found


def modules_with_examples() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in LEFT_OUT and docstrings(path.read_text()):
            found[".".join(("vitcache", *(part for part in parts if part != "__init__")))] = path
    return found


def missing_packages(source: str, find: Callable[[str], object] = find_spec) -> set[str]:
    """Optional packages that an example imports and this environment lacks."""
    imported = re.findall(r"^\s*(?:import|from) (\w+)", source, re.M)
    return {name for name in OPTIONAL if name in imported and find(name) is None}


MODULES = modules_with_examples()


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_the_output_that_they_show(name: str) -> None:
    """If an optional package is missing, its examples are skipped, and the test counts as skipped."""
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"not installed: {error.name}")
    missing: set[str] = set()
    said: list[str] = []
    for owner, line, text in docstrings(MODULES[name].read_text()):
        names = vars(module) | names_of_examples(name)
        test = doctest.DocTestParser().get_doctest(text, names, owner, str(MODULES[name]), line)
        if lacking := missing_packages("".join(example.source for example in test.examples)):
            missing |= lacking
        else:
            doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not said, "".join(said)
    if missing:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}; the other examples of {name} passed")


def test_missing_packages_names_an_optional_package_that_is_not_installed() -> None:
    source = "import torch\nfrom transformers import AutoModel\n"
    assert missing_packages(source, lambda name: None) == {"transformers"}
    assert missing_packages(source, lambda name: "a spec") == set()


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_every_public_name_has_an_example_in_its_docstring(name: str) -> None:
    try:
        module = import_module(name)
        public = set(PUBLIC_NAMES[name] or module.__all__) - {"__version__"}
        texts = {each: getattr(module, each).__doc__ or "" for each in sorted(public)}
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"not installed: {error.name}")
    lacking = [each for each, text in texts.items() if ">>>" not in text]
    assert lacking == []
