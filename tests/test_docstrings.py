"""The examples in the docstrings of the package, run as tests."""

from __future__ import annotations

import doctest
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_models import MODULES_WITH_MODEL_EXAMPLES, names_of_model_examples

PACKAGE = Path(__file__).parents[1] / "vitcache"
OPTIONAL = ("transformers", "triton", "prometheus_client")
LEFT_OUT = ("bench", "demo")  # commands, whose modules need packages and time


def modules_with_examples() -> list[str]:
    """Names of the modules whose text has an example; none is imported."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in LEFT_OUT and ">>>" in path.read_text():
            found.append(".".join(("vitcache", *(part for part in parts if part != "__init__"))))
    return found


def missing_packages(examples: str) -> list[str]:
    """Optional packages that the examples import and this environment lacks."""
    return [
        name
        for name in OPTIONAL
        if find_spec(name) is None and (f"import {name}" in examples or f"from {name}" in examples)
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstring_examples_print_what_they_say(name: str) -> None:
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"not installed: {error.name}")
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, name)
    assert tests, f"{name} has '>>>' in its text, and no docstring with an example"
    skipped = set()
    for test in tests:
        if missing := missing_packages("".join(example.source for example in test.examples)):
            skipped.update(missing)
            continue
        if name in MODULES_WITH_MODEL_EXAMPLES:
            pytest.importorskip("transformers")
            test.globs.update(names_of_model_examples())
        said: list[str] = []
        doctest.DocTestRunner(verbose=False).run(test, out=said.append)
        assert not said, "".join(said)
    if skipped:
        pytest.skip(f"not installed: {', '.join(sorted(skipped))}; the other examples of {name} passed")
