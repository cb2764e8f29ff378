"""SGLang's own `Scheduler` with a waiting queue: requests enter it, are aborted, and a batch takes them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.mem_cache.radix_cache import RadixCache
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_scene.prompts import Prompt


def nothing(*_: Any, **__: Any) -> None: ...


class WaitingScheduler(Scheduler):
    """A scheduler that runs no model.

    Its batches take all requests that SGLang's own code sees in the queue.
    """

    def __init__(self, model: Any, max_queued_requests: int | None = None) -> None:
        self.tp_worker = SimpleNamespace(model_runner=SimpleNamespace(model=model))
        self.waiting_queue = []
        self.ready: list[Req] = []  # requests whose grammars are ready
        self.aborted: list[str] = []
        self.chunked_req = self.mm_receiver = self.dllm_config = self.prefill_delayer = None
        self.max_queued_requests = max_queued_requests
        self.enable_priority_scheduling = self.abort_on_priority_when_disabled = False
        self.schedule_low_priority_values_first = False
        self.enable_hicache_storage = self.enable_lmcache = self.enable_hisparse = False
        self.disaggregation_mode = DisaggregationMode.NULL
        self.processed_tokens_counter = 0
        self.tree_cache = RadixCache.create_simulated()
        self.tree_cache.finish = nothing
        self.running_batch = self.last_batch = SimpleNamespace(
            reqs=[], is_empty=lambda: True, batch_is_full=True
        )
        self.beam_coordinator = SimpleNamespace(retire_group=nothing)
        self.grammar_manager = SimpleNamespace(
            abort_requests=nothing,
            has_waiting_grammars=lambda: bool(self.ready),
            get_ready_grammar_requests=self._take_ready,
        )
        self.enable_continuous_input_polling = False
        self.send_abort_output = lambda abort, request: self.aborted.append(request.rid)

    def _take_ready(self) -> list[Req]:
        ready, self.ready = self.ready, []
        return ready

    def _get_new_batch_prefill_raw(self, *, running_batch: Any, **_: Any) -> Any:
        for request in self._take_ready():
            self._add_request_to_queue(request)
        taken, self.waiting_queue = self.waiting_queue, []
        return (SimpleNamespace(reqs=taken) if taken else None), running_batch

    def take(self) -> list[str]:
        """The ids of the requests of the next batch."""
        plan = self.get_new_batch_prefill(self.running_batch)
        return [request.rid for request in plan.batch_to_run.reqs] if plan.batch_to_run else []

    def take_all(self, *names: str) -> list[list[str]]:
        """The batches until these requests were taken."""
        return list(self._batches(set(names)))

    def _batches(self, left: set[str]) -> Iterator[list[str]]:
        while left:
            if batch := self.take():
                left -= set(batch)
                yield batch

    def abort(self, name: str) -> None:
        self.abort_request(AbortReq(rid=name))

    @property
    def queue(self) -> list[str]:
        """The ids of the requests in the queue."""
        return [request.rid for request in self.waiting_queue]


def make_request(name: str, prompt: Prompt, salt: str | None = None) -> Req:
    """The request of a prompt, with its items."""
    sampling_params = SamplingParams(max_new_tokens=1)
    sampling_params.normalize(None)
    made = Req(name, "", array("q", prompt.ids.tolist()), sampling_params, cache_salt=salt)
    made.extend_image_inputs(prompt.inputs)
    return made


def enter(scheduler: Scheduler, *requests: Req) -> Sequence[Req]:
    """Let requests enter the queue."""
    for request in requests:
        scheduler._add_request_to_queue(request)
    return requests
