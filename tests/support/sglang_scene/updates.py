"""SGLang's own weight updater and `flush_cache`, with a tower as the model whose weights change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
from sglang.srt.managers import io_struct
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager
from sglang.srt.runtime_context import get_parallel

from sglang_scene.language_model import LanguageModel
from sglang_scene.prompts import Window, images
from sglang_scene.steps import run_step
from sglang_scene.tower import Tower
from sglang_scene.truth import step_rows

REQUESTS = {
    "update_weights_from_disk": io_struct.UpdateWeightFromDiskReqInput(model_path="m"),
    "update_weights_from_distributed": io_struct.UpdateWeightsFromDistributedReqInput(
        names=[], dtypes=[], shapes=[]
    ),
    "update_weights_from_tensor": io_struct.UpdateWeightsFromTensorReqInput(serialized_named_tensors=[]),
    "update_weights_from_ipc": io_struct.UpdateWeightsFromIPCReqInput(zmq_handles={}),
    "end_weight_update": io_struct.EndWeightUpdateReqInput(),
}
RELEASE = io_struct.ReleaseMemoryOccupationReqInput(tags=["kv_cache"])


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone, for the barriers of the updaters."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with get_parallel().override(tp_group=SimpleNamespace(cpu_group=None)):
            yield
    finally:
        torch.distributed.destroy_process_group()


def make_scheduler(is_idle: bool = True) -> Any:
    """The fields of a scheduler that `flush_cache` uses."""
    nothing = SimpleNamespace(
        reset=lambda: None,
        clear=lambda: None,
        reset_aux_cache_allocator=lambda: None,
        reset_metrics=lambda: None,
        is_stats_logging_rank=False,
    )
    names = ("tree_cache", "req_to_token_pool", "token_to_kv_pool_allocator", "grammar_manager")
    return SimpleNamespace(
        **dict.fromkeys([*names, "metrics_reporter"], nothing),
        is_fully_idle=lambda ignore_waiting: is_idle,
        _engine_paused=False,
        disaggregation_mode=None,
        draft_worker=None,
        waiting_queue=[],
        running_batch=SimpleNamespace(reqs=[]),
        record_weight_version_change=lambda new_version: None,
    )


class Engine:
    """SGLang's updater with a tower as its model.

    Parameters
    ----------
    ending
        How the update of the weights ends: ``"succeeds"``, ``"fails"`` or ``"raises"``.
    flushes
        Whether SGLang flushes its caches: no request runs.
    """

    def __init__(self, ending: str = "succeeds", *, flushes: bool = True) -> None:
        self.model, self.tower, self.ending = LanguageModel(), Tower(), ending
        self.scheduler = make_scheduler(is_idle=flushes)
        loads = ["update_weights_from_disk", "load_weights_from_distributed", "update_weights_from_tensor"]
        loads += ["update_weights_from_ipc", "end_weight_update"]
        updater = SimpleNamespace(
            **dict.fromkeys(loads, self.load),
            begin_weight_update=lambda: None,
            receive_weights_from_distributed=lambda **request: None,
        )
        runner = SimpleNamespace(weight_updater=updater)
        worker = SimpleNamespace(
            weight_update_runners=lambda: [("target", runner)],
            deserialize_own_rank=lambda tensors: [],
            model_runner=runner,
        )
        self.manager = SchedulerWeightUpdaterManager(
            tp_worker=worker,
            draft_worker=None,
            memory_saver_adapter=SimpleNamespace(pause=lambda tag: None),
            flush_cache=self.flush,
            is_fully_idle=lambda **named: True,
            scheduler=self.scheduler,
        )
        self.manager.begin_weight_update(io_struct.BeginWeightUpdateReqInput())

    def load(self, *arguments: Any, **named: Any) -> tuple[bool, str]:
        """Change the weights."""
        self.tower.weight *= -2
        if self.ending == "raises":
            raise RuntimeError("the weights are half-way")
        return self.ending == "succeeds", self.ending

    def flush(self, empty_cache: bool = False) -> bool:
        """Call `Scheduler.flush_cache`."""
        return Scheduler.flush_cache(self.scheduler, empty_cache)

    def update(self, name: str) -> Any:
        """Call an updater by its name: it changes the weights."""
        return getattr(self.manager, name)(REQUESTS[name])

    def is_right(self, windows: Sequence[Window] | None = None) -> bool:
        """Run a step, by default of three images. Whether its rows are those of the present weights."""
        windows = [images(3).window()] if windows is None else windows
        rows = run_step(windows, self.model, self.tower)
        return torch.equal(rows, step_rows(windows, self.model, self.tower))
