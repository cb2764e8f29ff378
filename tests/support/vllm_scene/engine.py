"""A random scheduler over the inventory and model workers: preemptions, aborts, resets, late reports."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vitcache.adapters.vllm.inventory import Inventory
from vitcache.adapters.vllm.orders import StepOrders, StepReport
from vllm_scene.requests import Request, make_request
from vllm_scene.worker import Broken, WorkerModel


class Window(NamedTuple):
    """The tokens of a request that a step computes, and the epoch of the weights."""

    request: Request
    start: int
    stop: int
    weights: int


@dataclass
class Step:
    """A step in flight."""

    orders: StepOrders | None
    freed: list[str]
    encodes: list[tuple[str, Any]]
    reads: list[tuple[str, Any]]  # identifier, content
    computed: list[tuple[Request, int]]
    windows: list[Window]
    report: StepReport | None = None


@dataclass
class Engine:
    """Inventory, a manager of vLLM's encoder cache, workers, and requests in random traffic."""

    inventory: Inventory
    manager: Any
    workers: list[WorkerModel]
    rng: random.Random
    lag: int
    is_v2: bool
    is_priority: bool = False  # a pass may preempt a request that it has scheduled
    most_tokens: int = 40
    weights: int = 0
    running: list[Request] = field(default_factory=list)
    in_flight: deque[Step] = field(default_factory=deque)
    failed: list[str] = field(default_factory=list)
    num_encodes: int = 0
    num_made: int = 0

    def add_request(self, items: list[tuple[str, int]], salt: str | None = None) -> Request:
        self.num_made += 1
        request = make_request(f"r{self.num_made}", items, salt)
        self.running.append(request)
        return request

    def step(self) -> None:
        """Run one pass and its step on the workers. Take in the report of `lag` steps ago."""
        step = self._schedule()
        self._execute(step)
        self.in_flight.append(step)
        while len(self.in_flight) > self.lag:
            self._update(self.in_flight.popleft())

    def finish(self, request: Request) -> None:
        self.running.remove(request)
        self.inventory.finish(request)
        self.manager.free(request)

    def preempt(self, request: Request) -> None:
        self.manager.free(request)
        request.num_computed_tokens = 0

    def reset(self) -> None:
        """Reset the encoder cache after a change of the weights, as vLLM's `reset_encoder_cache` does."""
        self.weights += 1
        self.manager.reset()
        for worker in self.workers:
            worker.rows.clear()

    def _schedule(self) -> Step:
        budget_tokens, budget_rows = self.most_tokens, self.most_tokens
        encodes: dict[str, list[tuple[str, Any]]] = {}  # by request
        reads: dict[str, list[tuple[str, Any]]] = {}
        computed: dict[str, tuple[Request, int]] = {}
        windows: dict[str, Window] = {}
        for request in list(self.running):
            if self.is_priority and computed and self.rng.random() < 0.05:
                victim, _ = computed.pop(self.rng.choice(list(computed)))
                encodes.pop(victim.request_id)
                reads.pop(victim.request_id)
                windows.pop(victim.request_id)
                self.preempt(victim)
            if not self.inventory.admit(request, request.num_computed_tokens) or budget_tokens <= 0:
                continue
            start = request.num_computed_tokens
            tokens = min(budget_tokens, request.num_tokens - start, self.rng.choice((3, 7, 40)))
            plan = self._plan(request, start, tokens, budget_rows)
            tokens, encode, load, rows_left = plan
            if tokens == 0:
                continue
            if self.rng.random() < 0.05:  # no KV blocks
                self.manager.free(request)
                continue
            budget_rows = rows_left
            budget_tokens -= tokens
            for index in encode + load:
                self.manager.allocate(request, index)
                self.inventory.allocate(request, index)
            encodes[request.request_id], reads[request.request_id] = [], []
            for index in encode:
                feature = request.mm_features[index]
                content = (request.cache_salt or "", feature.identifier, feature.num_rows, self.weights)
                encodes[request.request_id].append((feature.identifier, content))
            for feature in request.mm_features:
                if feature.offset < start + tokens and feature.end > start:
                    rows = (feature.identifier, feature.num_rows, self.weights)
                    reads[request.request_id].append((feature.identifier, rows))
            windows[request.request_id] = Window(request, start, start + tokens, self.weights)
            request.num_computed_tokens += tokens
            computed[request.request_id] = (request, request.num_computed_tokens)
        freed = self.manager.get_freed_mm_hashes()
        self.num_encodes += sum(map(len, encodes.values()))
        orders = self.inventory.close_step(freed, bool(computed))
        if orders is not None:
            orders.runs_encoder = any(encodes.values())
        return Step(
            orders,
            freed,
            [each for items in encodes.values() for each in items],
            [each for items in reads.values() for each in items],
            list(computed.values()),
            list(windows.values()),
        )

    def _plan(
        self, request: Request, start: int, tokens: int, budget: int
    ) -> tuple[int, list[int], list[int], int]:
        """Choose the items of a request, as vLLM's `_try_schedule_encoder_inputs` does."""
        encode: list[int] = []
        load: list[int] = []
        names: set[str] = set()
        rows_before = 0
        for index, feature in enumerate(request.mm_features):
            if feature.end <= start or feature.offset >= start + tokens or feature.identifier in names:
                continue
            cached = self.manager.get_cached_num_encoder_embeds(request, index)
            if cached is not None and cached != feature.num_rows:
                return 0, [], [], budget
            if self.manager.check_and_update_cache(request, index):
                continue
            if not self.manager.can_allocate(request, index, budget, rows_before):
                return max(0, feature.offset - start), encode, load, budget
            rows_before += feature.num_rows
            names.add(feature.identifier)
            if self.inventory.has(feature.identifier):
                load.append(index)
            else:
                encode.append(index)
                budget -= feature.num_rows
        return tokens, encode, load, budget

    def _execute(self, step: Step) -> None:
        reports = []
        for worker in self.workers:
            for identifier in step.freed:
                worker.rows.pop(identifier, None)
            if step.orders is None:
                continue
            worker.begin(step.orders)
            for identifier, content in step.encodes:
                worker.encode(identifier, content, is_v2=self.is_v2)
            worker.place(step.windows)
            for identifier, expected in step.reads:
                if identifier not in worker.rows:
                    raise Broken(f"step {step.orders.step}: the encoder cache lacks {identifier}")
                if not worker.shows(identifier, expected):
                    raise Broken(f"step {step.orders.step}: {identifier} is not {expected}")
            reports.append(worker.end())
        reports = [report for report in reports if report is not None]
        for report in reports:
            step.report = report if step.report is None else step.report.merge(report)

    def _update(self, step: Step) -> None:
        for request, num_computed in step.computed:
            if request not in self.running:
                continue
            for index, feature in enumerate(request.mm_features):
                if feature.end <= min(num_computed, request.num_computed_tokens):
                    self.manager.free_encoder_input(request, index)
            if num_computed >= request.num_tokens and request.num_computed_tokens >= request.num_tokens:
                self.finish(request)
        self.failed += self.inventory.take_failed()
        if step.report is not None:
            self.inventory.report(step.report)


def make_engine(
    inventory: Inventory,
    make_manager: Callable[[Inventory], Any],
    *,
    seed: int = 0,
    ranks: int = 1,
    lag: int = 0,
    is_v2: bool = False,
    is_priority: bool = False,
) -> Engine:
    """Return an engine with model workers."""
    workers = [WorkerModel(inventory.settings) for _ in range(ranks)]
    return Engine(inventory, make_manager(inventory), workers, random.Random(seed), lag, is_v2, is_priority)


def run_traffic(
    engine: Engine, num_steps: int, *, num_items: int = 24, salts: tuple[str | None, ...] = (None,)
) -> None:
    """Run random traffic. Raises `Broken` where inventory and workers disagree."""
    rng = engine.rng
    sizes = [rng.choice((1, 3, 4, 5, 8, 9, 13, 16)) for _ in range(num_items)]
    for _ in range(num_steps):
        if len(engine.running) < 5 and rng.random() < 0.6:
            chosen = [min(int(rng.expovariate(0.15)), num_items - 1) for _ in range(rng.randint(1, 4))]
            engine.add_request([(f"i{each}", sizes[each]) for each in chosen], rng.choice(salts))
        if engine.running and rng.random() < 0.04:
            engine.preempt(rng.choice(engine.running))
        if engine.running and rng.random() < 0.04:
            engine.finish(rng.choice(engine.running))
        if rng.random() < 0.003:
            engine.reset()
        engine.step()
