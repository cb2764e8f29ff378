"""Checks of the commands that pages print: each must exist, and its options must parse. None is run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.metadata import metadata
from importlib.util import find_spec
from io import StringIO
from unittest.mock import patch

from doc_pages.blocks import ROOT
from vitcache.adapters.vllm import plugin
from vitcache.adapters.vllm.start_up import MANAGERS

PROJECT = "https://github.com/vitcache/vitcache"
ENDPOINTS = (
    *("/metrics", "/reset_encoder_cache", "/v1/chat/completions"),  # of vLLM
    *("/server_info", "/flush_cache?timeout=10", "/update_weights_from_disk"),  # of SGLang
)


def check_command(words: list[str]) -> str:
    """Return the fault of a command; an empty string if it has none."""
    name = words[0].rpartition("/")[2]
    check = CHECKS.get(name)
    return f"no check for the command {name}" if check is None else check(words[1:])


def check_vitcache(arguments: list[str]) -> str:
    """Parse the arguments of `vitcache` with its own parser, and run nothing."""
    command_line = import_module("vitcache.__main__")
    ran, said = [], StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        modules = {import_module(module) for module, *_ in command_line.COMMANDS.values()}
        patches = [patch.object(module, "run", lambda args: ran.append(args) or 0) for module in modules]
        for each in patches:
            each.start()
        try:
            code = command_line.main([argument.replace("$", "") for argument in arguments])
        except SystemExit as end:
            code = end.code
        finally:
            for each in patches:
                each.stop()
    is_question = not arguments or {"--help", "-h", "--version"} & set(arguments)
    return "" if not code and (ran or is_question) else said.getvalue() or "runs nothing"


def check_python(arguments: list[str]) -> str:
    """A module of `python -m`, the code of `python -c`, or a file."""
    if arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
        return ""
    if arguments[0] != "-m":
        return "" if (ROOT / arguments[0]).is_file() else f"no file {arguments[0]}"
    module, *rest = arguments[1:]
    if module == "vitcache":
        return check_vitcache(rest)
    if module == "pip":
        return check_pip(rest)
    if module == "venv":
        return ""
    if not module.startswith("vitcache.") or find_spec(module) is None:
        return f"no module {module}"
    absent = [path for path in rest if "bench/results/" in path and not list(ROOT.glob(path))]
    return f"no file {absent[0]}" if absent else ""


def check_make(arguments: list[str]) -> str:
    """Targets of the Makefile, and variables that it reads."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.M))
    for argument in arguments:
        variable, is_variable, value = argument.partition("=")
        if not is_variable:
            if argument not in targets:
                return f"no target {argument}"
        elif not re.search(rf"\b{variable}\b", makefile):
            return f"no variable {variable}"
        elif variable == "ARGS" and (fault := check_vitcache([arguments[0], *shlex.split(value)])):
            return fault
    return ""


def check_pip(arguments: list[str]) -> str:
    """The extras of `pip install`."""
    if arguments[0] != "install":
        return f"pip {arguments[0]}"
    known = extras()
    for requirement in arguments[1:]:
        if found := re.match(r"(?:vitcache|\.)\[([\w,]+)\]", requirement):
            unknown = set(found[1].split(",")) - known
            if unknown:
                return f"no extra {sorted(unknown)}"
        elif not re.match(r"vitcache$|\.$|-e$|--?[a-z-]+$|vitcache[-\w.*]+\.(whl|tar\.gz)$", requirement):
            return f"installs {requirement}, which is not vitcache"
    return ""


def extras() -> set[str]:
    """The extras of the installed package."""
    return set(metadata("vitcache").get_all("Provides-Extra", ()))


def check_vllm(arguments: list[str]) -> str:
    """The two flags of `vllm serve`. tests/engines/test_readme.py parses all flags with vLLM's own parser."""
    if arguments[0] != "serve":
        return f"vllm {arguments[0]}"
    flags = dict(zip(arguments[2::2], arguments[3::2], strict=True))
    transfer = json.loads(flags["--ec-transfer-config"])
    manager = json.loads(flags["--ec-manager-config"])
    if (transfer["ec_connector"], transfer["ec_role"]) != (plugin.CONNECTOR, "ec_both"):
        return f"connector {transfer}"
    return "" if manager == {"encoder_cache_manager_cls": MANAGERS[0]} else f"manager {manager}"


def check_sglang(arguments: list[str]) -> str:
    """`sglang serve` with a model: the plug-in needs no flag."""
    return "" if arguments == ["serve", "--model-path", "$MODEL"] else f"sglang {arguments}"


def check_git(arguments: list[str]) -> str:
    return "" if arguments[:2] == ["clone", PROJECT] else f"git {arguments}"


def check_curl(arguments: list[str]) -> str:
    known = any(argument.endswith(ENDPOINTS) for argument in arguments)
    return "" if known else f"no endpoint of {ENDPOINTS}"


CHECKS: dict[str, Callable[[list[str]], str]] = {
    "vitcache": check_vitcache,
    "python": check_python,
    "python3": check_python,
    "make": check_make,
    "pip": check_pip,
    "vllm": check_vllm,
    "sglang": check_sglang,
    "git": check_git,
    "curl": check_curl,
    "grep": lambda arguments: "",
    "cd": lambda arguments: "" if arguments == ["vitcache"] else f"cd {arguments}",
}
