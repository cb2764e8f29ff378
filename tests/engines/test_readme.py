"""The command `vllm serve` as README.md and docs/vllm.md print it: flags, an engine, with FULL=1 a server."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm")

from engine_runner.cases import Case
from engine_runner.chat import NUM_IMAGES, TURNS
from engine_runner.pool import Pool
from engine_runner.printed import printed_blocks, printed_flags, printed_options
from engine_runner.server import Server
from fleet_files import commands

Result = Callable[[str], dict[str, Any]]


def test_printed_commands_of_all_pages_have_the_same_flags() -> None:
    first, *rest = (printed_flags(block) for block in printed_blocks())
    assert [flags for flags in rest if flags != first] == []


def test_flags_of_the_printed_command_are_parsed_by_vllm(pool: Pool) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags = printed_flags(printed_blocks()[0])
    parser = make_arg_parser(FlexibleArgumentParser())
    found = AsyncEngineArgs.from_cli_args(parser.parse_args([str(pool.model("qwen3")), *flags]))
    options = printed_options()
    transfer, manager = found.ec_transfer_config, found.ec_manager_config
    wanted = options["ec_transfer_config"]
    assert {name: getattr(transfer, name) for name in wanted} == wanted
    assert manager.encoder_cache_manager_cls == options["ec_manager_config"]["encoder_cache_manager_cls"]


@pytest.mark.parametrize("name", [name for name, words in commands().items() if words[0] == "vllm"])
def test_flags_of_the_files_of_the_fleet_are_parsed_by_vllm(name: str, pool: Pool) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.cli.serve import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags = commands()[name][3:]  # behind `vllm serve MODEL`
    parser = make_arg_parser(FlexibleArgumentParser())
    found = AsyncEngineArgs.from_cli_args(parser.parse_args([str(pool.model("qwen3")), *flags]))
    assert "mooncake" in found.ec_transfer_config.ec_connector_extra_config


@pytest.mark.engines("qwen3-printed", "qwen3-whole-stock")
def test_engine_with_the_printed_flags_encodes_each_image_once(result: Result) -> None:
    printed, stock = result("qwen3-printed"), result("qwen3-whole-stock")
    assert [turn["tokens"] for turn in printed["chat"]] == [turn["tokens"] for turn in stock["chat"]]
    assert sum(turn["encodes"] for turn in printed["chat"]) == NUM_IMAGES
    assert printed["counters"]["vllm:vitcache_encodes"] == NUM_IMAGES
    assert printed["counters"]["vllm:vitcache_hits tier=device"] > 0


class PrintedServer(Server):
    """A server that bash starts with a printed block.

    The block finds a script `vllm` on PATH. The script adds the flags of a test machine: a port, a small KV
    cache, and no compilation.
    """

    def __init__(self, pool: Pool, code: str) -> None:
        case = Case("server-printed")
        super().__init__(pool.python, pool.model(case.model), pool.folder / "servers", case)
        start, flags = self._command[:3], self._command[5:]
        script = pool.folder / "printed/vllm"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {shlex.join(start)} "$@" {shlex.join(flags)}\n')
        script.chmod(0o755)
        self._command = ["bash", "-c", code]
        self._environment["MODEL"] = str(pool.model(case.model))
        self._environment["PATH"] = f"{script.parent}:{self._environment['PATH']}"


@pytest.mark.full
def test_server_of_the_printed_block_encodes_an_image_once(pool: Pool) -> None:
    pool.wait()
    pool.say("server printed starts")
    with PrintedServer(pool, printed_blocks()[0].code) as server:
        assert server.ask(TURNS[0]) == server.ask(TURNS[0])
        counters = server.counters()
        server.stop()
        server.wait_for_end()
    assert counters["vllm:vitcache_encodes_total"] == len(TURNS[0])
