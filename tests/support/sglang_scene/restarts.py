"""Servers that run one after the other over one folder of a disk tier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sglang_scene.language_model import HIDDEN, LanguageModel
from sglang_scene.plugin import plugged
from sglang_scene.prompts import Prompt
from sglang_scene.steps import run_step
from sglang_scene.tower import Tower
from sglang_scene.truth import step_rows
from sglang_scene.waiting import WaitingScheduler, enter, make_request
from vitcache.adapters.sglang import arrivals, model_cache, service
from vitcache.adapters.sglang.model_cache import StepShape

LONG_S = 60.0


class Server:
    """A scheduler and a tower, from its start to its end."""

    def __init__(self, levels: int = 0) -> None:
        self.tower, self.model = Tower(levels), LanguageModel()
        self.scheduler = WaitingScheduler(self.tower)
        shape = StepShape(HIDDEN, levels, torch.bfloat16, torch.device("cpu"))
        service.SERVICE.make_early(self.tower, shape)

    def answer(self, *prompts: Prompt) -> bool:
        """Let requests wait, take them, and run a step of all. Whether its rows are right."""
        names = [str(number) for number in range(len(prompts))]
        enter(self.scheduler, *map(make_request, names, prompts))
        self.scheduler.take_all(*names)
        return self.step(prompts)

    def step(self, prompts: Sequence[Prompt]) -> bool:
        windows = [prompt.window() for prompt in prompts]
        rows = run_step(windows, self.model, self.tower)
        return torch.equal(rows, step_rows(windows, self.model, self.tower))

    def keep(self) -> None:
        """Write to the disk, and wait for it."""
        for cache in service.SERVICE.models.caches:
            assert cache.flush(LONG_S)


@contextmanager
def serving(
    monkeypatch: pytest.MonkeyPatch | None, folder: Path, levels: int = 0, **options: Any
) -> Iterator[Server]:
    """A server with a folder, which it writes at its end. Its requests wait for the disk as long as it takes.

    `monkeypatch` None: requests wait as long as those of an operator.
    """
    if monkeypatch is not None:
        monkeypatch.setattr(model_cache, "FETCH_TIMEOUT_S", LONG_S)
        monkeypatch.setattr(arrivals, "FETCH_TIMEOUT_S", LONG_S)
    disk = {"host_bytes": "1 MiB", "disk": str(folder), "disk_bytes": "64 MiB", "weights_name": "v1"}
    given = {name: value for name, value in {**disk, **options}.items() if value is not None}
    with plugged(**given), torch.no_grad():
        server = Server(levels)
        yield server
        server.keep()
        service.SERVICE.close()
