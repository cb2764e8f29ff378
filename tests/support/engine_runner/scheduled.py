"""vLLM's scheduler with the parts of its worker that handle encoder outputs, without a model.

The worker makes the rows of an item from its identifier, so each step can check that the rows that a request
needs are the right ones. vLLM must be importable.
"""

from __future__ import annotations

import pickle
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.distributed.ec_transfer import ec_transfer_state
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker.ec_connector_model_runner_mixin import ECConnectorModelRunnerMixin
from vllm.v1.worker.gpu.ec_connector import ActiveECConnector
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache

from engine_runner.cases import Case

BLOCK_TOKENS = 16
ROW_WIDTH = 512
MARGIN = 2  # rows before and after an item in the output of a batch


def join_group_of_one(config: Any) -> None:
    """Make this process the only worker of an engine; a second call does nothing."""
    if not parallel_state.model_parallel_is_initialized():
        store = f"file://{tempfile.mkdtemp()}/store"
        with set_current_vllm_config(config):
            parallel_state.init_distributed_environment(1, 0, store, 0, "gloo")
            parallel_state.initialize_model_parallel()


class Scheduled:
    """A scheduler and one worker, `lag` steps behind it.

    `case` gives the options of the engine and the version of the model runner. The scheduler gets the output
    of a step after it has scheduled `lag` further steps, as with asynchronous scheduling.
    """

    def __init__(self, model: Path, case: Case, lag: int = 0, num_blocks: int = 256) -> None:
        self.config = EngineArgs(str(model), **case.options()).create_engine_config()
        self.config.cache_config.num_gpu_blocks = num_blocks
        self._is_v2 = case.model_runner == 2
        self._lag = lag
        spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=16, dtype=torch.float32)
        self.scheduler = (AsyncScheduler if lag else Scheduler)(
            self.config,
            KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            StructuredOutputManager(self.config),
            block_size=BLOCK_TOKENS,
            log_stats=True,
        )
        self.cache = EncoderCache()
        self.rows = self.cache.encoder_outputs  # vLLM's dict: identifier -> rows
        self.connector: Any = None
        if self.config.ec_transfer_config is not None:
            join_group_of_one(self.config)
            ec_transfer_state.ensure_ec_transfer_initialized(self.config)
            self.connector = ec_transfer_state.get_ec_transfer()
            self._load_model()
            self.connector.start_worker_services()
        self._v2 = ActiveECConnector(self.config, self.rows) if self.connector else None
        self._waiting: deque[tuple[Any, ModelRunnerOutput]] = deque()
        self._features: dict[str, list[MultiModalFeatureSpec]] = {}
        self.weights = 0
        self.encodes = 0
        self.finished: dict[str, int] = {}  # request -> number of its tokens
        self.preempted: list[str] = []

    def close(self) -> None:
        self.scheduler.shutdown()
        ec_transfer_state.ensure_ec_transfer_shutdown()

    def add(
        self,
        name: str,
        items: list[tuple[str, int]],
        num_tokens: int = 2,
        salt: str | None = None,
        priority: int = 0,
    ) -> None:
        """Add a request with items, given as identifier and number of rows."""
        features, position = [], 4
        for identifier, num_rows in items:
            features.append(
                MultiModalFeatureSpec(
                    None, "image", identifier, PlaceholderRange(position, num_rows), identifier
                )
            )
            position += num_rows + 2
        sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        sampling.update_from_generation_config({}, eos_token_id=0)
        self._features[name] = features
        self.scheduler.add_request(
            Request(
                name,
                [1] * (position + 4),
                sampling,
                None,
                mm_features=features,
                cache_salt=salt,
                priority=priority,
            )
        )

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def reset(self) -> None:
        """Change the weights, as an engine without unfinished requests does."""
        while self._waiting:
            self._update()
        self.weights += 1
        self.scheduler.reset_encoder_cache()
        self.cache.reset_encoder_cache()

    def step(self) -> None:
        """Schedule a step and execute it. The scheduler gets the output `lag` steps later."""
        planned = self.scheduler.schedule()
        self.preempted += sorted(planned.preempted_req_ids or ())
        self._waiting.append((planned, self._execute(planned)))
        if len(self._waiting) > self._lag:
            self._update()

    def run(self, limit: int = 500) -> None:
        """Step until all requests are finished, at most `limit` times."""
        for _ in range(limit):
            if not self.scheduler.has_requests() and not self._waiting:
                return
            if self.scheduler.has_requests():
                self.step()
            else:
                self._update()
        raise RuntimeError(f"{len(self.scheduler.requests)} requests are not finished after {limit} steps")

    def expected(self, identifier: str, num_rows: int) -> torch.Tensor:
        """The rows of an item with the present weights."""
        generator = torch.Generator().manual_seed(hash((identifier, self.weights)) % (1 << 40))
        return torch.randn(num_rows, ROW_WIDTH, generator=generator).bfloat16()

    def _load_model(self) -> None:
        """Do nothing: this worker has no model."""

    def _update(self) -> None:
        planned, output = self._waiting.popleft()
        if output.ec_connector_output is not None:
            output.ec_connector_output = pickle.loads(pickle.dumps(output.ec_connector_output))
        for outputs in self.scheduler.update_from_output(planned, output).values():
            for one in outputs.outputs:
                if one.finish_reason is not None:
                    self.finished[one.request_id] = self.finished.get(one.request_id, 0) + 1

    def _execute(self, planned: Any) -> ModelRunnerOutput:
        """The part of `execute_model` that handles encoder outputs, in vLLM's order."""
        for identifier in planned.free_encoder_mm_hashes:
            self.cache.free_encoder_cache(identifier)
        if planned.ec_connector_metadata is not None:
            planned.ec_connector_metadata = pickle.loads(pickle.dumps(planned.ec_connector_metadata))
        if not planned.num_scheduled_tokens:
            return self._v2.no_forward(planned) if self._v2 and self._is_v2 else EMPTY_MODEL_RUNNER_OUTPUT
        found = None
        if self.connector is None:
            self._encode(planned)
        elif self._is_v2:
            with self._v2.maybe_get_output(planned) as found:
                self._encode(planned)
        else:
            with ECConnectorModelRunnerMixin.maybe_get_ec_connector_output(planned, self.rows) as found:
                self._encode(planned)
        names = list(planned.num_scheduled_tokens)
        return ModelRunnerOutput(
            names,
            {name: index for index, name in enumerate(names)},
            [self._sample(planned, name) for name in names],
            ec_connector_output=found,
        )

    def _encode(self, planned: Any) -> None:
        items = [
            self._features[name][index]
            for name, indices in planned.scheduled_encoder_inputs.items()
            for index in indices
        ]
        for item in items:
            rows = self.expected(item.identifier, item.mm_position.length)
            # As from an encoder: a view of the output of the batch.
            batch = torch.nn.functional.pad(rows, (0, 0, MARGIN, MARGIN))
            self.rows[item.identifier] = batch[MARGIN:-MARGIN]
            self.encodes += 1
            if self.connector is not None and not self._is_v2:
                ECConnectorModelRunnerMixin.maybe_save_ec_to_connector(self.rows, item.identifier)
        self._check(planned)

    def _check(self, planned: Any) -> None:
        """Compare the rows of every item that overlaps the tokens of this step."""
        for name, first, last in self._windows(planned):
            for item in self._features[name]:
                position = item.mm_position
                if position.offset < last and position.offset + position.length > first:
                    rows = self.rows.get(item.identifier)
                    if rows is None:
                        raise RuntimeError(f"request {name} needs {item.identifier}, which is missing")
                    if not torch.equal(rows, self.expected(item.identifier, position.length)):
                        raise RuntimeError(f"request {name} would get wrong rows of {item.identifier}")

    def _windows(self, planned: Any) -> list[tuple[str, int, int]]:
        """Request, first token and last token of every scheduled request."""
        computed = {new.req_id: new.num_computed_tokens for new in planned.scheduled_new_reqs}
        cached = planned.scheduled_cached_reqs
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        return [
            (name, computed[name], computed[name] + count)
            for name, count in planned.num_scheduled_tokens.items()
        ]

    def _sample(self, planned: Any, name: str) -> list[int]:
        """One token, unless tokens of the prompt remain."""
        [last] = [last for scheduled, _, last in self._windows(planned) if scheduled == name]
        request = self.scheduler.requests.get(name)
        return [7] if request is None or last >= request.num_prompt_tokens else []
