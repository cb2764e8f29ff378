"""Servers that run one after the other over one folder of a disk tier, or over a store."""

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

    def __init__(self, tower: Tower) -> None:
        self.tower, self.model = tower, LanguageModel()
        self.scheduler = WaitingScheduler(tower)
        shape = StepShape(HIDDEN, tower.levels, torch.bfloat16, torch.device("cpu"))
        service.SERVICE.make_early(tower, shape)

    def answer(self, *prompts: Prompt, salt: str | None = None) -> bool:
        """Let requests wait, take them, and run a step of all. Whether its rows are right."""
        names = [str(number) for number in range(len(prompts))]
        requests = (make_request(name, prompt, salt) for name, prompt in zip(names, prompts, strict=True))
        enter(self.scheduler, *requests)
        self.scheduler.take_all(*names)
        return self.step(prompts)

    def step(self, prompts: Sequence[Prompt]) -> bool:
        windows = [prompt.window() for prompt in prompts]
        rows = run_step(windows, self.model, self.tower)
        return torch.equal(rows, step_rows(windows, self.model, self.tower))

    def keep(self) -> None:
        """Write to the tiers, and wait for them."""
        for cache in service.SERVICE.models.caches:
            assert cache.flush(LONG_S)


@contextmanager
def serving(
    folder: Path, tower: Tower | None = None, *, wait_s: float = LONG_S, **options: Any
) -> Iterator[Server]:
    """A server with a folder, which it writes at its end. Its requests wait `wait_s` for the tiers.

    None leaves an option out, except for `mooncake_worth`.
    """
    disk = {"host_bytes": "1 MiB", "disk": str(folder), "disk_bytes": "64 MiB", "weights_name": "v1"}
    given = {
        name: value
        for name, value in {**disk, **options}.items()
        if value is not None or name == "mooncake_worth"
    }
    with pytest.MonkeyPatch.context() as patch, plugged(**given), torch.no_grad():
        for module in (model_cache, arrivals):
            patch.setattr(module, "FETCH_TIMEOUT_S", wait_s)
        server = Server(Tower() if tower is None else tower)
        yield server
        server.keep()
        service.SERVICE.close()
