"""The files of examples/fleet for Compose and Kubernetes, and the commands in them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FLEET = Path(__file__).resolve().parents[2] / "examples/fleet"


def compose() -> dict[str, Any]:
    """The content of the Compose file."""
    return yaml.safe_load((FLEET / "compose.yaml").read_text())


def objects() -> list[dict[str, Any]]:
    """The objects of the manifest of Kubernetes."""
    return list(yaml.safe_load_all((FLEET / "kubernetes.yaml").read_text()))


def objects_of(kind: str) -> dict[str, dict[str, Any]]:
    """The objects of a kind by name."""
    return {each["metadata"]["name"]: each for each in objects() if each["kind"] == kind}


def containers() -> dict[str, dict[str, Any]]:
    """The container of each deployment, by the name of the deployment."""
    return {
        name: each["spec"]["template"]["spec"]["containers"][0]
        for name, each in objects_of("Deployment").items()
    }


def commands() -> dict[str, list[str]]:
    """The command of each service of the Compose file, and of each deployment of the manifest."""
    of_compose = {
        f"compose: {name}": [*service.get("entrypoint", ()), *service["command"]]
        for name, service in compose()["services"].items()
    }
    return of_compose | {
        f"kubernetes: {name}": [*container["command"], *container["args"]]
        for name, container in containers().items()
    }


@cache
def flags_of(program: str) -> frozenset[str]:
    """The flags that ``--help`` of a program of Mooncake lists."""
    path = shutil.which(program, path=sysconfig.get_path("scripts")) or shutil.which(program)
    assert path is not None, f"{program} is not installed"
    done = subprocess.run([path, "--help"], capture_output=True, text=True)
    return frozenset(f"--{name}" for name in re.findall(r"^    -(\w+) \(", done.stdout, re.MULTILINE))
