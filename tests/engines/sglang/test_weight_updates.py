"""After an update of the weights, or a flush, no row of the old weights is served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from sglang.srt.managers import io_struct
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager
from sglang.srt.runtime_context import get_parallel
from sglang_scene.language_model import LanguageModel
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import images
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


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """A group of this process alone, for the barriers of the updaters."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with get_parallel().override(tp_group=SimpleNamespace(cpu_group=None)):
        yield
    torch.distributed.destroy_process_group()


def scheduler(is_idle: bool = True) -> Any:
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
        draft_worker=None,
        waiting_queue=[],
        running_batch=SimpleNamespace(reqs=[]),
        record_weight_version_change=lambda new_version: None,
    )


class Engine:
    """SGLang's updater with a tower as its model. `ending`: how the update of the weights ends."""

    def __init__(self, ending: str, *, flushes: bool) -> None:
        self.model, self.tower, self.ending = LanguageModel(), Tower(), ending
        self.scheduler = scheduler(is_idle=flushes)
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
            memory_saver_adapter=None,
            flush_cache=lambda empty_cache: Scheduler.flush_cache(self.scheduler, empty_cache),
            is_fully_idle=lambda: True,
            scheduler=self.scheduler,
        )
        self.manager.begin_weight_update(io_struct.BeginWeightUpdateReqInput())

    def load(self, *arguments: Any, **named: Any) -> tuple[bool, str]:
        self.tower.weight *= -2
        if self.ending == "raises":
            raise RuntimeError("the weights are half-way")
        return self.ending == "succeeds", self.ending

    def is_right(self) -> bool:
        windows = [images(3).window()]
        rows = run_step(windows, self.model, self.tower)
        return torch.equal(rows, step_rows(windows, self.model, self.tower))


@pytest.mark.parametrize("flushes", [True, False])
@pytest.mark.parametrize("ending", ["succeeds", "fails", "raises"])
@pytest.mark.parametrize("name", REQUESTS)
def test_rows_after_an_update_are_those_of_the_new_weights(name: str, ending: str, flushes: bool) -> None:
    with plugged(), torch.no_grad():
        engine = Engine(ending, flushes=flushes)
        assert engine.is_right()
        raises = pytest.raises(RuntimeError, match="half-way") if ending == "raises" else nullcontext()
        with raises:
            getattr(engine.manager, name)(REQUESTS[name])
        assert engine.is_right()
        assert engine.tower.num_encodes == 6


def test_sglang_alone_serves_rows_of_the_old_weights_after_an_update() -> None:
    with stock(), torch.no_grad():
        engine = Engine("succeeds", flushes=True)
        assert engine.is_right()
        name = "update_weights_from_disk"
        getattr(engine.manager, name)(REQUESTS[name])
        assert not engine.is_right()
        assert engine.tower.num_encodes == 3


@pytest.mark.parametrize("is_idle", [True, False])
def test_flush_removes_every_entry_if_sglang_flushes_too(is_idle: bool) -> None:
    with plugged(), torch.no_grad():
        engine = Engine("succeeds", flushes=True)
        assert engine.is_right()
        assert Scheduler.flush_cache(scheduler(is_idle), empty_cache=False) is is_idle
        assert engine.is_right()
        assert engine.tower.num_encodes == (6 if is_idle else 3)


def test_update_and_flush_before_the_first_step_do_nothing() -> None:
    with plugged(), torch.no_grad():
        engine = Engine("succeeds", flushes=True)
        assert engine.manager.end_weight_update(REQUESTS["end_weight_update"]).success
        assert Scheduler.flush_cache(scheduler(), empty_cache=False)
        assert engine.is_right()


def test_update_of_unfinished_requests_gives_later_chunks_the_new_rows() -> None:
    with plugged(), torch.no_grad():
        engine = Engine("succeeds", flushes=False)
        first, second = images(1, rows=20).chunks(15, 20)
        run_step(first, engine.model, engine.tower)
        engine.manager.update_weights_from_disk(REQUESTS["update_weights_from_disk"])
        rows = run_step(second, engine.model, engine.tower)
        assert torch.equal(rows, step_rows(second, engine.model, engine.tower))
