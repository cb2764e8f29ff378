"""Starts engines in processes of their own, two at a time, and keeps their results."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from gpu_runner.processes import Ended, run

from engine_runner.cases import CASES
from engine_runner.device import KEPT, runs_on_gpu
from vitcache.bench.engines.variables import of_every_engine

MOST_AT_A_TIME = 2
GRACE_S = 5
MODEL_LIMIT_S = 120
TAIL_LINES = 40
SUPPORT = Path(__file__).parents[1]


class Stopped(Exception):
    """The run was stopped: no process starts any more, and running ones are killed."""


class Case(Protocol):
    """One engine, as a pool runs it: a name, a model of `tiny_models`, and a limit of time."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def limit_s(self) -> float: ...

    def variables(self) -> dict[str, str]:
        """The environment variables of the process, beside those of every engine."""


@dataclass(frozen=True)
class Outcome:
    """How the process of one engine ended."""

    case: Case
    code: int
    is_cut: bool
    seconds: float
    result: dict[str, Any]  # empty if the process failed
    output: str

    def tail(self) -> str:
        """The last lines of the output, and how the process ended."""
        ending = (
            f"ended by its limit of {self.case.limit_s:.0f} s" if self.is_cut else f"exit code {self.code}"
        )
        return "\n".join([*self.output.splitlines()[-TAIL_LINES:], f"engine {self.case.name}: {ending}"])


def environment(folder: Path) -> dict[str, str]:
    """The environment variables of every engine of vLLM. All files that vLLM writes are in `folder`."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT or not name.startswith(("VLLM_", "VITCACHE_", "TRITON_", "HF_", "CUDA_"))
    }
    if runs_on_gpu():
        own |= {name: value for name, value in os.environ.items() if name.startswith("CUDA_")}
    else:
        own["VLLM_TARGET_DEVICE"] = "cpu"
    return {
        **own,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SUPPORT), own.get("PYTHONPATH")])),
        **of_every_engine(folder),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM would bind both engines to the same core
    }


class Pool:
    """The engines of one run.

    `python` is the interpreter of .venv-vllm, `folder` gets models, logs and results, and `say` gets a line
    when an engine starts or ends. One thread uses the pool. The engines are those of vLLM, unless another
    `program` runs one of other `cases` in another `environment`.
    """

    def __init__(
        self,
        python: str,
        folder: Path,
        say: Callable[[str], None],
        *,
        program: str = "engine_runner.child",
        cases: Mapping[str, Case] = CASES,
        environment: Callable[[Path], dict[str, str]] = environment,
    ) -> None:
        self.python = python
        self.folder = folder
        self.say = say
        self._program, self._cases, self._environment = program, cases, environment
        self._threads = ThreadPoolExecutor(MOST_AT_A_TIME)
        self._models: dict[str, Path] = {}
        self._running: dict[str, Future[Outcome]] = {}
        self._stopped = Event()
        folder.mkdir(parents=True, exist_ok=True)

    def model(self, family: str) -> Path:
        """The folder of a model, which is made at its first use."""
        if family not in self._models:
            maker = hashlib.sha256()
            for path in sorted((SUPPORT / "engine_runner/tiny_models").glob("*.py")):
                maker.update(path.read_bytes())
            folder = self.folder / "models" / f"{family}-{maker.hexdigest()[:8]}"
            if not folder.exists():
                self._make_model(family, folder)
            self._models[family] = folder
        return self._models[family]

    def _make_model(self, family: str, folder: Path) -> None:
        command = [self.python, "-m", "engine_runner.tiny_models", family, str(folder)]
        ended, output, seconds = self._execute(command, {}, MODEL_LIMIT_S)
        if ended.code != 0:
            raise RuntimeError(f"the model {family} was not made\n{output}")
        self.say(f"model {family} made in {seconds:.0f} s")

    def start(self, names: Iterable[str]) -> None:
        """Queue engines in this order; an engine that is queued already is left out."""
        for name in dict.fromkeys(names):
            if name not in self._running:
                self.model(self._cases[name].model)
                self._running[name] = self._threads.submit(self._run, self._cases[name])

    def outcome(self, name: str) -> Outcome:
        """Wait for an engine, whether its process failed or not."""
        self.start([name])
        return self._running[name].result()

    def wait(self) -> None:
        """Wait until all queued engines have ended."""
        wait(self._running.values())

    def outcomes(self) -> list[Outcome]:
        """The engines that have ended so far."""
        return [
            future.result() for future in self._running.values() if future.done() and not future.exception()
        ]

    def stop(self) -> None:
        """Kill the running engines, and start no more."""
        self._stopped.set()
        self._threads.shutdown(cancel_futures=True)

    def _run(self, case: Case) -> Outcome:
        result = self.folder / "results" / f"{case.name}.json"
        result.parent.mkdir(exist_ok=True)
        result.unlink(missing_ok=True)
        command = [
            self.python,
            "-m",
            self._program,
            case.name,
            str(self._models[case.model]),
            str(result),
        ]
        self.say(f"{case.name} starts")
        ended, output, seconds = self._execute(command, case.variables(), case.limit_s)
        (self.folder / "results" / f"{case.name}.log").write_text(output)
        self.say(f"{case.name} ended after {seconds:.0f} s with exit code {ended.code}")
        answer = json.loads(result.read_text()) if ended.code == 0 else {}
        return Outcome(case, ended.code, ended.is_cut, seconds, answer, output)

    def _execute(
        self, command: list[str], variables: dict[str, str], limit_s: float
    ) -> tuple[Ended, str, float]:
        output = bytearray()
        begin = time.monotonic()
        ended = run(
            command,
            env={**self._environment(self.folder), **variables},
            directory=self.folder,
            write=output.extend,
            limit_s=limit_s,
            grace_s=GRACE_S,
            clock=self._clock,
        )
        return ended, output.decode(errors="replace"), time.monotonic() - begin

    def _clock(self) -> float:
        # `run` asks for the time in each round, so an exception here ends its process.
        if self._stopped.is_set():
            raise Stopped
        return time.monotonic()
