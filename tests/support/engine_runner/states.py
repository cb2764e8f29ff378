"""vLLM's own model state and that of its connector, over models with equal weights, compared in each step.

vLLM's scheduler makes the steps. vLLM must be importable.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import set_current_vllm_config
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states import default, init_model_state

from engine_runner.cases import Case, plug_in
from engine_runner.scheduled import Scheduled
from engine_runner.small_models import NUM_IDS, DeepstackModel, Inner, make_item
from vitcache.adapters.vllm.placed_models import PlacesRows

CPU = torch.device("cpu")
FAMILY = "qwen3"
NUM_TOKENS = 96  # in a step
PADDING = 5
DECODED = 7


class Different(AssertionError):
    """A step gave other rows than vLLM's own."""


class States(Scheduled):
    """A scheduler, the worker of a placed model, and vLLM's own model state beside it.

    `model` is the class of both models, and `inner` makes their text parts. `change` changes vLLM's
    configuration before the states are made, and `change_batch` the batch of each step. If not `is_placed`,
    the model is of an architecture that vitcache does not place. If `replays_graph()`, the forward pass of
    the step is the replay of a CUDA graph, in which vLLM's models do not clear their deepstack levels.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: type[Any] = DeepstackModel,
        inner: Callable[[], Inner] = Inner,
        placeholder: int = 262,
        is_placed: bool = True,
        model_runner: int = 2,
        lag: int = 0,
        device_pages: int = 24,
        host_pages: int = 256,
        change: Callable[[Any], None] = lambda config: None,
        change_batch: Callable[[InputBatch], InputBatch] = lambda batch: batch,
        replays_graph: Callable[[], bool] = lambda: False,
        **extra: Any,
    ) -> None:
        self._make_model = lambda kind: kind(self.config, inner(), placeholder)
        self._model_class = model
        self._placed_class = type(model.__name__, (PlacesRows, model), {}) if is_placed else model
        self._placeholder = placeholder
        self._change, self._change_batch = change, change_batch
        self._replays_graph = replays_graph
        self._prompts: dict[str, list[int]] = {}  # with the output tokens of a preempted request
        self._batch: InputBatch | None = None
        self._planned: Any = None
        self.store: Any = None  # of the worker, once it has made a step
        self._chance = random.Random(0)
        self._numbers: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.num_steps = 0
        self.num_gathered = 0  # tensors that a model which drafts tokens got
        settings = plug_in(FAMILY, device_pages, host_pages, **extra)
        sizes = {"num_batched_tokens": NUM_TOKENS, "device_pages": device_pages, "host_pages": host_pages}
        case = Case("states", mode="vitcache", model_runner=model_runner, settings=settings, **sizes)
        super().__init__(folder, case, lag, num_blocks=18)

    def add(
        self,
        name: str,
        items: list[tuple[str, int]],
        num_tokens: int = 2,
        salt: str | None = None,
        priority: int = 0,
        *,
        is_masked: bool = False,
        modalities: tuple[str, ...] = ("image",),
    ) -> None:
        """Add a request. If `is_masked`, each item has tokens of text between those of its rows."""
        chance = self._chance
        prompt = [chance.randrange(NUM_IDS) for _ in range(chance.randint(1, 6))]
        features = []
        for index, (identifier, num_rows) in enumerate(items):
            number = self._numbers.setdefault(identifier, len(self._numbers))
            mask = [True] * num_rows
            for _ in range(chance.randint(1, 9) if is_masked else 0):
                mask.insert(chance.randint(0, len(mask)), False)
            is_embed = torch.tensor(mask) if is_masked else None
            features.append(
                MultiModalFeatureSpec(
                    make_item(number, num_rows),
                    modalities[index % len(modalities)],
                    identifier,
                    PlaceholderRange(len(prompt), len(mask), is_embed),
                    identifier,
                )
            )
            prompt += [self._placeholder if is_row else chance.randrange(NUM_IDS) for is_row in mask]
            prompt += [chance.randrange(NUM_IDS) for _ in range(chance.randint(0, 4))]
        prompt += [chance.randrange(NUM_IDS) for _ in range(chance.randint(1, 4))]
        sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        sampling.update_from_generation_config({}, eos_token_id=0)
        self._features[name] = features
        self.scheduler.add_request(
            Request(name, prompt, sampling, None, mm_features=features, cache_salt=salt, priority=priority)
        )

    def make_state(self, cache: EncoderCache | None) -> Any:
        """Make the state that vLLM chooses for the placed model. None: the worker has no encoder."""
        with self._as_vllm():
            return init_model_state(self.config, self._make_model(self._placed_class), cache, CPU)

    @property
    def encoded(self) -> Counter[int]:
        """How often the encoder encoded each item."""
        return Counter(self.ours.model.encoded)

    def retry(self) -> None:
        """Execute a step again, which has raised."""
        self._waiting.append((self._planned, self._execute(self._planned)))

    def reset(self) -> None:
        super().reset()
        self.stock_cache.reset_encoder_cache()

    def expected(self, identifier: str, num_rows: int) -> Tensor:
        """The rows of an item, where no model runs."""
        kwargs = {key: field.data for key, field in make_item(self._numbers[identifier], num_rows).items()}
        model: Any = self._model_class
        factors = torch.randn(model.width, generator=torch.Generator().manual_seed(2))
        return (kwargs["pixels"].repeat(1, model.width // 8) * factors).to(torch.bfloat16)

    # Parts

    def _load_model(self) -> None:
        self._change(self.config)
        self.stock_cache = EncoderCache()
        if not self.config.use_v2_model_runner:
            return
        with self._as_vllm():
            model = self._make_model(self._model_class)
            self.stock = default.DefaultModelState(self.config, model, self.stock_cache, CPU)
        self.ours = self.make_state(self.cache)

    @contextmanager
    def _as_vllm(self) -> Iterator[None]:
        # The states of positions need Triton, and no row depends on them.
        with (
            set_current_vllm_config(self.config),
            patch.object(default, "get_rope_state", lambda *_, **__: None),
        ):
            yield

    def _execute(self, planned: Any) -> ModelRunnerOutput:
        self._planned, self._batch = planned, None
        for name in (*planned.finished_req_ids, *(planned.preempted_req_ids or ())) if self._is_v2 else ():
            self._remove(name)
        for identifier in planned.free_encoder_mm_hashes:
            self.stock_cache.free_encoder_cache(identifier)
        output = super()._execute(planned)
        if output.ec_connector_output is not None and output.ec_connector_output.ec_connector_worker_meta:
            self.counts.update(output.ec_connector_output.ec_connector_worker_meta.report.counts)
        if self._batch is not None:
            self._compare_gathered(self._batch)
        return output

    def _encode(self, planned: Any) -> None:
        if not self._is_v2:
            super()._encode(planned)
            return
        for new in planned.scheduled_new_reqs:
            self._remove(new.req_id)
            self._prompts[new.req_id] = new.prefill_token_ids
            for cache in (self.cache, self.stock_cache):
                cache.add_request(new.req_id, self._features[new.req_id])
        batch = self._batch = self._change_batch(self._make_batch(planned))
        self.store = self.connector.store
        states = SimpleNamespace(num_computed_tokens=SimpleNamespace(gpu=None))
        expected = self.stock.prepare_inputs_embeds(self._stock_inputs(planned), batch, states)
        self.ours.encoder_runner.inputs_embeds.fill_(torch.nan)
        found = self.ours.prepare_inputs_embeds(planned.scheduled_encoder_inputs, batch, states)
        self.num_steps += 1
        self._require("shape of inputs_embeds", found.shape == expected.shape)
        self._require("inputs_embeds", are_equal(found[: batch.num_tokens], expected[: batch.num_tokens]))
        self._compare_levels(batch)

    def _stock_inputs(self, planned: Any) -> dict[str, list[int]]:
        """The items that vLLM's own state encodes: those that the other one encodes or loads."""
        inputs = {name: list(indices) for name, indices in planned.scheduled_encoder_inputs.items()}
        loads = set(planned.ec_connector_metadata.orders.loads)
        for name in planned.num_scheduled_tokens:
            for index, feature in enumerate(self._features[name]):
                if feature.identifier in loads:
                    loads.remove(feature.identifier)
                    inputs.setdefault(name, []).append(index)
        return inputs

    def _make_batch(self, planned: Any) -> InputBatch:
        windows = self._windows(planned)
        lengths = np.array([last - first for _, first, last in windows], dtype=np.int32)
        num_tokens = int(lengths.sum())
        buffers = InputBuffers(len(windows), num_tokens + PADDING, CPU)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        computed = np.array([first for _, first, _ in windows], dtype=np.int32)
        prefill = np.array([len(self._prompts[name]) for name, _, _ in windows], dtype=np.int32)
        ids = [
            self._prompts[name][position] if position < len(self._prompts[name]) else DECODED
            for name, first, last in windows
            for position in range(first, last)
        ]
        buffers.input_ids[:num_tokens] = torch.tensor(ids)
        return replace(
            InputBatch.make_dummy(len(windows), num_tokens, buffers),
            req_ids=[name for name, _, _ in windows],
            num_scheduled_tokens=lengths,
            num_tokens_after_padding=num_tokens + PADDING,
            query_start_loc_np=starts,
            query_start_loc=torch.from_numpy(starts),
            num_computed_tokens_np=computed,
            num_computed_prefill_tokens_np=np.minimum(computed, prefill),
            prefill_len_np=prefill,
            is_prefilling_np=computed < prefill,
            has_prefill=bool((computed < prefill).any()),
            input_ids=buffers.input_ids,
        )

    def _compare_levels(self, batch: InputBatch) -> None:
        models = self.ours.model, self.stock.model
        if not hasattr(models[0], "deepstack_input_embeds"):
            return
        numbers = [model.deepstack_input_embeds_num_tokens for model in models]
        self._require(f"deepstack_input_embeds_num_tokens: {numbers}", numbers[0] == numbers[1])
        for levels in zip(*(model.deepstack_input_embeds for model in models), strict=True):
            self._require("a deepstack level", are_equal(*(level[: batch.num_tokens] for level in levels)))
        for model in () if self._replays_graph() else models:  # as their `forward` does
            model._clear_deepstack_input_embeds(batch.num_tokens_after_padding)

    def _compare_gathered(self, batch: InputBatch) -> None:
        """Compare the rows that a model gets which drafts tokens."""
        (ours, is_ours), (stock, is_stock) = (
            state.gather_mm_embeddings(batch, draft_lookahead=1) for state in (self.ours, self.stock)
        )
        self._require("mask of gathered rows", are_equal(is_ours, is_stock))
        self.num_gathered += len(ours)
        is_same = len(ours) == len(stock) and all(map(are_equal, ours, stock))
        self._require("gathered rows", is_same)

    def _remove(self, name: str) -> None:
        for state, cache in ((self.ours, self.cache), (self.stock, self.stock_cache)):
            state.remove_request(name)
            cache.remove_request(name)

    def _require(self, what: str, is_right: bool) -> None:
        if not is_right:
            raise Different(f"step {self.num_steps}: {what}")


def run_traffic(states: States, num_requests: int, *, is_masked: bool = True) -> None:
    """Run random requests, of which some are aborted. If `is_masked`, half of them have masked items."""
    chance = random.Random(0)
    first = len(states._features)
    sizes = {f"item {number}": chance.choice([1, 6, 16, 33, 48]) for number in range(24)}
    for number in range(num_requests):
        items = [(name, sizes[name]) for name in chance.choices(list(sizes), k=chance.randint(0, 4))]
        mask = is_masked and number % 2 == 0
        states.add(f"request {first + number}", items, chance.randint(1, 6), is_masked=mask)
        for _ in range(chance.randint(0, 4)):
            states.step()
        if chance.random() < 0.1 and states.scheduler.requests:
            states.abort(chance.choice(list(states.scheduler.requests)))
    states.run()


def are_equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and bits."""
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))
    )
