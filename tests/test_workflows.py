"""The workflows of GitHub, as far as this machine can check them. No test runs a workflow."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
# An action of another repository, its commit, and the release that the commit is.
USES = re.compile(
    r"uses: (?P<action>[\w.-]+/[\w./-]+)@(?P<commit>[0-9a-f]{40}) # (?P<release>v\d+\.\d+\.\d+)"
)


def load(name: str) -> dict[Any, Any]:
    """Return a YAML file. PyYAML reads the key `on` of a workflow as True."""
    loaded = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of each job."""
    for path in WORKFLOWS:
        for name, job in load(f".github/workflows/{path.name}")["jobs"].items():
            yield f"{path.stem}.{name}", job


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each step, with the name of its job."""
    for name, job in jobs():
        for step in job["steps"]:
            yield name, step


def read_pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def supported_pythons() -> list[str]:
    """Return the versions of Python in the classifiers of pyproject.toml."""
    classifiers = "\n".join(read_pyproject()["project"]["classifiers"])
    return re.findall(r"Programming Language :: Python :: (3\.\d+)", classifiers)


def make_targets() -> set[str]:
    """Return the names that .PHONY of the Makefile lists."""
    found = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert found
    return set(found[1].split())


def test_every_action_is_pinned_by_its_commit_and_names_the_release() -> None:
    lines = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert lines
    assert [line for line in lines if not USES.search(line)] == []


def test_every_action_has_one_commit_and_one_release_in_all_workflows() -> None:
    pins: dict[str, set[tuple[str, str]]] = {}
    for path in WORKFLOWS:
        for action, commit, release in USES.findall(path.read_text()):
            pins.setdefault(action, set()).add((commit, release))
    assert {action for action, found in pins.items() if len(found) > 1} == set()


def test_every_job_has_a_timeout_and_permissions_of_its_own() -> None:
    assert [name for name, job in jobs() if "timeout-minutes" not in job or "permissions" not in job] == []
    assert all(load(f".github/workflows/{path.name}")["permissions"] == {} for path in WORKFLOWS)


def test_only_the_job_that_publishes_may_write() -> None:
    writers = {
        name: job["permissions"]
        for name, job in jobs()
        if any(access != "read" for access in job["permissions"].values())
    }
    assert writers == {"release.publish": {"id-token": "write"}}


def test_no_checkout_keeps_the_token() -> None:
    checkouts = [step for _, step in steps() if step.get("uses", "").startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_no_command_contains_an_expression() -> None:
    # GitHub inserts the value of an expression as code. Values reach a command as environment variables.
    assert [step["run"] for _, step in steps() if "${{" in step.get("run", "")] == []


def test_workflows_call_only_targets_of_the_makefile() -> None:
    commands = "\n".join(step.get("run", "") for _, step in steps())
    called = set(re.findall(r"\bmake ([a-z][\w-]*)", commands)) | {
        target for _, job in jobs() for target in job.get("strategy", {}).get("matrix", {}).get("target", ())
    }
    assert {"check", "test", "install-test"} <= called
    assert called - make_targets() == set()


def test_actionlint_is_pinned_and_knows_the_variables_of_the_workflows() -> None:
    commands = [step["run"] for _, step in steps() if "actionlint" in step.get("run", "")]
    assert len(commands) == 1
    assert re.search(r"@v\d+\.\d+\.\d+$", commands[0])
    used = {name for path in WORKFLOWS for name in re.findall(r"\bvars\.(\w+)", path.read_text())}
    assert set(load(".github/actionlint.yaml")["config-variables"]) == used


def test_pythons_of_tests_and_wheels_are_those_of_the_classifiers() -> None:
    supported = supported_pythons()
    assert dict(jobs())["ci.test"]["strategy"]["matrix"]["python"] == supported
    built = read_pyproject()["tool"]["cibuildwheel"]["build"]
    assert built.split() == [f"cp{version.replace('.', '')}-*" for version in supported]


def test_installations_are_tested_with_the_oldest_and_the_newest_python() -> None:
    supported = supported_pythons()
    installed = dict(jobs())["ci.install"]["strategy"]["matrix"]["python"]
    assert installed == [supported[0], supported[-1]]


def test_torch_is_tested_at_both_ends_of_the_supported_range() -> None:
    from vitcache.versions import SUPPORTED

    versions = dict(jobs())["ci.torch"]["strategy"]["matrix"]["torch"]
    assert [version.rpartition(".")[0] for version in versions[:-1]] == list(SUPPORTED["torch"])
    assert versions[-1] == "newest"


def test_job_of_the_gpu_is_skipped_without_a_runner_and_for_pull_requests() -> None:
    job = dict(jobs())["ci.gpu"]
    assert job["if"] == "github.event_name == 'push' && vars.VITCACHE_GPU_RUNNER != ''"
    assert job["runs-on"] == "${{ vars.VITCACHE_GPU_RUNNER }}"


def test_programs_that_a_workflow_installs_have_exact_versions() -> None:
    installed = [
        argument
        for _, step in steps()
        for packages in re.findall(r"pip install (.+)", step.get("run", ""))
        for argument in packages.split()
    ]
    assert installed
    assert [package for package in installed if not re.fullmatch(r"[\w-]+==[\w.]+", package)] == []


@pytest.mark.parametrize(
    "hook", load(".pre-commit-config.yaml")["repos"][0]["hooks"], ids=lambda hook: hook["id"]
)
def test_hook_before_a_commit_runs_a_command_of_make_check(hook: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    check = re.search(r"^check: .*\n(?:\t.*\n)+", makefile, re.M)
    assert check
    commands = check[0].replace("$(python)", ".venv/bin/python").replace(" --check", "")
    assert hook["entry"].replace(" --force-exclude", "") in commands
