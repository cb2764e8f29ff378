"""`vllm serve` over HTTP with its three processes: answers, counters, a killed process, and a new start."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable

import pytest
from engine_runner.cases import Case
from engine_runner.chat import NUM_IMAGES, TURNS
from engine_runner.pool import Pool
from engine_runner.server import Server
from engine_runner.server_process import shared_memory

pytestmark = pytest.mark.full
Serve = Callable[..., Server]


@pytest.fixture(scope="module")
def serve(pool: Pool) -> Serve:
    """Makes a server. The engines of the pool end first: two engines at a time are enough for two cores."""
    pool.wait()

    def make(name: str, model: str = "qwen3", model_runner: int = 1, **variables: str) -> Server:
        pool.say(f"server {name} starts")
        case = Case(f"server-{name}", model=model, mode="vitcache", model_runner=model_runner)
        return Server(pool.python, pool.model(model), pool.folder / "servers", case, variables)

    return make


@pytest.fixture(scope="module")
def stock_answers(serve: Serve) -> list[list[int]]:
    """The answers of a server with vitcache's flags and VITCACHE_DISABLE=1."""
    with serve("disabled", VITCACHE_DISABLE="1") as server:
        answers = [server.ask(turn) for turn in TURNS]
        assert set(server.counters().values()) == {0}
        server.stop()
        server.wait_for_end()
    return answers


def answers_or_ends(server: Server) -> bool:
    """Ask until the server has ended, or tells that it is broken."""
    try:
        server.ask([0])
    except urllib.error.HTTPError as error:
        return error.code >= 500
    except OSError:
        return True
    return server.has_ended()


@pytest.mark.parametrize("title", ["VLLM::EngineCore", "VLLM::Worker"])
def test_killed_process_ends_the_server_and_a_new_one_answers(
    title: str, serve: Serve, stock_answers: list[list[int]]
) -> None:
    before = shared_memory()
    with serve(f"before-{title[6:]}-is-killed") as server:
        assert len([name for name in server.processes().values() if "VLLM::" in name]) == 2
        assert [server.ask(turn) for turn in TURNS] == stock_answers
        counters = server.counters()
        assert counters["vllm:vitcache_encodes_total"] == NUM_IMAGES
        assert counters['vllm:vitcache_hits_total tier="device"'] > 0
        assert counters['vllm:vitcache_hits_total tier="host"'] > 0
        server.kill(title)
        server.wait_for(lambda: answers_or_ends(server), 60, "answers as if no process was killed")
        server.stop()
        server.wait_for_end()
    assert shared_memory() <= before
    with serve(f"after-{title[6:]}-was-killed") as server:
        assert [server.ask(turn) for turn in TURNS[:2]] == stock_answers[:2]
        server.stop()
        server.wait_for_end()
    assert shared_memory() <= before


def test_server_with_v2_places_all_rows_and_gives_the_answers_of_a_disabled_one(serve: Serve) -> None:
    # No kernel of Qwen2.5-VL needs a replacement in Triton's interpreter, which runs in all three processes.
    answers = {}
    for name, variables in (("v2-disabled", {"VITCACHE_DISABLE": "1"}), ("v2", {})):
        with serve(name, "qwen2_5", 2, **variables) as server:
            answers[name] = [server.ask(turn) for turn in TURNS]
            counters = server.counters()
            server.stop()
            server.wait_for_end()
    assert answers["v2"] == answers["v2-disabled"]
    assert len(set(map(tuple, answers["v2"]))) > len(TURNS) // 2
    assert counters["vllm:vitcache_encodes_total"] == NUM_IMAGES
    assert counters['vllm:vitcache_placements_total text="table"'] >= len(TURNS)
    assert {value for name, value in counters.items() if "vitcache_merges" in name} == {0}
