"""The schemas of Compose and of Kubernetes, from the wheels of requirements/schemas.txt.

`make test` installs the wheels in .overlays, and sets VITCACHE_REQUIRE_SCHEMAS. Without it, tests of absent
schemas are skipped.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parents[2]
WHEELS = dict(re.findall(r"^(\w+)==(.*)$", (ROOT / "requirements/schemas.txt").read_text(), re.MULTILINE))


def faults_of_compose(content: Any) -> list[str]:
    """The faults of a Compose file by the Compose Specification's schema."""
    folder = _package("check_jsonschema") / "builtin_schemas/vendor"
    return _faults(_load(folder / "compose-spec.json"), folder, content)


def faults_of_object(content: dict[str, Any]) -> list[str]:
    """The faults of an object of Kubernetes by the strict schema of its kind, which has no unknown fields."""
    version = WHEELS["kubernetes_validate"]
    folder = _package("kubernetes_validate") / f"kubernetes-json-schema/v{version}-local-strict"
    group, _, name = content["apiVersion"].rpartition("/")
    parts = [content["kind"], *filter(None, [group.partition(".")[0], name])]
    path = folder / ("-".join(parts).lower() + ".json")
    return _faults(_load(path), folder, content) if path.is_file() else [f"no schema {path.name}"]


def _package(name: str) -> Path:
    folder = ROOT / f".overlays/{name}-{WHEELS[name]}" / name
    if not folder.is_dir():
        if os.environ.get("VITCACHE_REQUIRE_SCHEMAS"):
            pytest.fail(f"{folder} is missing: make test installs it")
        pytest.skip(f"needs {name}, which make test installs in .overlays")
    return folder


def _load(path: Path) -> Any:
    return json.loads(path.read_text())


def _faults(schema: Any, folder: Path, content: Any) -> list[str]:
    """The faults of a content. A reference to another file is one to a file of `folder`."""

    def retrieve(uri: str) -> Resource[Any]:
        return Resource.from_contents(_load(folder / uri.rpartition("/")[2]))

    validator = Draft202012Validator(schema, registry=Registry(retrieve=retrieve))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]
