"""Steps of optimizers: after each one, an attached model gives the stock logits."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from attached import GEMMA, logits, pair
from caches import make_cache
from tiny_models import one_at_a_time
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

from vitcache import Namespace
from vitcache.adapters.changes import weight_index
from vitcache.adapters.changes.model_changes import INVALIDATED, OPTIMIZER, TRAINING
from vitcache.adapters.changes.optimizer_steps import watch_optimizers
from vitcache.adapters.session import Session
from vitcache.adapters.transformers import Attachment, attach

pytestmark = pytest.mark.transformers

STEPS = 2


def tower(model: nn.Module) -> nn.Module:
    return model.model.vision_tower


def text(model: nn.Module) -> nn.Module:
    return model.model.language_model


def steps_of(attachment: Attachment) -> int:
    """The number of the optimizers' steps that the attachment noticed."""
    return attachment.stats().changes.get(OPTIMIZER, 0)


def set_gradients(weights: Any) -> list[nn.Parameter]:
    """Set equal gradients for the weights of equal models."""
    generator = torch.Generator().manual_seed(0)
    found = list(weights)
    for weight in found:
        weight.grad = torch.randn(weight.shape, generator=generator)
    return found


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


FUSED = [(cls, {"fused": True}) for cls in (AdamW, Adam, SGD, Adagrad)]
FOREACH = [(cls, {"foreach": True}) for cls in (AdamW, Adam, SGD, Adagrad)]
LOOPS = [(cls, {"foreach": False}) for cls in (AdamW, SGD)]


@pytest.mark.parametrize(("cls", "options"), [*FUSED, *FOREACH, *LOOPS])
def test_fine_tuning_in_eval_mode_gives_the_stock_logits_after_each_step(
    cls: type[Optimizer], options: dict[str, bool]
) -> None:
    stock, model, attachment, _ = pair(GEMMA)
    prompt = GEMMA.prompt(stock, 0)
    optimizers = [cls(each.parameters(), lr=0.1, **options) for each in (stock, model)]
    before = logits(model, prompt)
    for _ in range(STEPS):
        for each, optimizer in zip((stock, model), optimizers, strict=True):
            each(**prompt).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        after = logits(stock, prompt)
        assert torch.equal(logits(model, prompt), after)
        assert torch.equal(logits(model, prompt), after)
        assert not torch.equal(before, after)
        before = after
    assert steps_of(attachment) == STEPS
    assert (attachment.stats().encoded, attachment.stats().hits) == (1 + STEPS, STEPS)


def lbfgs(weights: list[nn.Parameter]) -> None:
    def closure() -> Tensor:
        return sum((weight.square().sum() for weight in weights), torch.zeros(()))

    torch.optim.LBFGS(weights, max_iter=2).step(closure)


def scaled(weights: list[nn.Parameter]) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    scaler.step(SGD(weights, lr=0.1, fused=True))


def prepared(weights: list[nn.Parameter]) -> None:
    Accelerator(cpu=True).prepare(SGD(weights, lr=0.1, fused=True)).step()
    AcceleratorState._reset_state(reset_partial_state=True)


def compiled(weights: list[nn.Parameter]) -> None:
    step = torch.compile(SGD(weights, lr=0.1, fused=True).step, backend="eager")
    for _ in range(STEPS):
        step()


def in_backward(weights: list[nn.Parameter]) -> None:
    hooks = []
    for weight in weights:
        optimizer = SGD([weight], lr=0.1, fused=True)
        hooks.append(weight.register_post_accumulate_grad_hook(lambda _, step=optimizer.step: step()))
    sum((weight.square().sum() for weight in weights), torch.zeros(())).backward()
    for hook in hooks:
        hook.remove()


def sparse(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        weight.grad = weight.grad.to_sparse()
    torch.optim.SparseAdam(weights, lr=0.1).step()


def zero_redundancy(weights: list[nn.Parameter]) -> None:
    ZeroRedundancyOptimizer(weights, optimizer_class=SGD, lr=0.1, fused=True).step()


def scheduled(weights: list[nn.Parameter]) -> None:
    optimizer = SGD(weights, lr=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    schedule.step()


def unpickled(weights: list[nn.Parameter]) -> None:
    optimizer = pickle.loads(pickle.dumps(SGD([nn.Parameter(torch.ones(1))], lr=0.1, fused=True)))
    optimizer.add_param_group({"params": weights})
    optimizer.step()


WAYS = [lbfgs, scaled, prepared, compiled, in_backward, sparse, scheduled, unpickled]


def check_way(way: Callable[[list[nn.Parameter]], None]) -> None:
    stock, model, attachment, _ = pair(GEMMA)
    prompt = GEMMA.prompt(stock, 0)
    before = logits(model, prompt)
    for each in (stock, model):
        way(set_gradients(tower(each).parameters()))
    after = logits(stock, prompt)
    assert torch.equal(logits(model, prompt), after)
    assert not torch.equal(before, after)
    assert steps_of(attachment) > 0


@pytest.mark.parametrize("way", WAYS)
def test_step_of_any_kind_gives_the_stock_logits(way: Callable[[list[nn.Parameter]], None]) -> None:
    check_way(way)


@pytest.mark.usefixtures("group")
def test_step_of_a_zero_redundancy_optimizer_gives_the_stock_logits() -> None:
    check_way(zero_redundancy)


@pytest.mark.usefixtures("group")
def test_step_of_a_sharded_tower_gives_the_stock_logits() -> None:
    stock, model = one_at_a_time(GEMMA, GEMMA.model()), GEMMA.model()
    prompt = GEMMA.prompt(stock, 0)
    fully_shard(tower(model))
    fully_shard(model)
    attachment = attach(model)
    optimizers = [SGD(tower(each).parameters(), lr=0.1) for each in (stock, model)]
    before = logits(model, prompt)
    for each, optimizer in zip((stock, model), optimizers, strict=True):
        each(**prompt).logits.square().mean().backward()
        optimizer.step()
    after = logits(stock, prompt)
    assert torch.equal(logits(model, prompt), after)
    assert not torch.equal(before, after)
    assert steps_of(attachment) == 1


def test_step_of_the_language_model_alone_keeps_the_entries() -> None:
    _, model, attachment, _ = pair(GEMMA)
    prompt = GEMMA.prompt(model, 0)
    logits(model, prompt)
    optimizer = AdamW(set_gradients(text(model).parameters()), fused=True)
    for _ in range(STEPS):
        optimizer.step()
        logits(model, prompt)
    assert (attachment.stats().encoded, attachment.stats().hits) == (1, STEPS)
    assert attachment.stats().changes == {}


def test_step_with_a_frozen_tower_forgets_only_if_it_has_gradients() -> None:
    _, model, attachment, _ = pair(GEMMA)
    model.model.requires_grad_(False)
    text(model).requires_grad_(True)
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.step()
    assert steps_of(attachment) == 0
    set_gradients(tower(model).parameters())
    optimizer.step()
    assert steps_of(attachment) == 1


def flat_buffer(weights: list[nn.Parameter]) -> nn.Parameter:
    """Make the weights views of one buffer, which is returned."""
    flat = nn.Parameter(torch.cat([weight.detach().flatten() for weight in weights]))
    for weight, data in zip(weights, flat.detach().split([each.numel() for each in weights]), strict=True):
        weight.data = data.view(weight.shape)
    return flat


def test_step_of_a_flat_buffer_that_has_the_tower_gives_the_stock_logits() -> None:
    models = one_at_a_time(GEMMA, GEMMA.model()), GEMMA.model()
    flats = [flat_buffer(list(tower(each).parameters())) for each in models]
    attachment = attach(models[1])
    prompt = GEMMA.prompt(models[0], 0)
    before = logits(models[1], prompt)
    for flat in flats:
        SGD(set_gradients([flat]), lr=0.1, fused=True).step()
    after = logits(models[0], prompt)
    assert torch.equal(logits(models[1], prompt), after)
    assert not torch.equal(before, after)
    assert steps_of(attachment) == 1


def test_step_of_language_model_weights_in_a_buffer_with_the_tower_keeps_the_entries() -> None:
    model = GEMMA.model()
    flat_buffer(list(model.model.parameters()))
    attachment = attach(model)
    SGD(set_gradients(text(model).parameters()), lr=0.1, fused=True).step()
    assert steps_of(attachment) == 0
    SGD(set_gradients(tower(model).parameters()), lr=0.1, fused=True).step()
    assert steps_of(attachment) == 1


def test_step_of_a_weight_that_was_set_after_attach_is_noticed() -> None:
    stock, model, attachment, _ = pair(GEMMA)
    prompt = GEMMA.prompt(stock, 0)
    SGD(set_gradients(text(model).parameters()), lr=0.0, fused=True).step()
    for each in (stock, model):
        projector = each.model.multi_modal_projector
        name, weight = next(iter(projector.named_parameters()))
        new = nn.Parameter(weight.detach().clone())
        setattr(projector, name, new)
        logits(each, prompt)
        SGD(set_gradients([new]), lr=0.1, fused=True).step()
    assert torch.equal(logits(model, prompt), logits(stock, prompt))
    assert steps_of(attachment) == 1


def test_weights_are_read_again_only_after_another_change(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, attachment, _ = pair(GEMMA)
    prompt = GEMMA.prompt(model, 0)
    read, reads = weight_index.all_weights, []

    def note(read_model: nn.Module) -> Any:
        if read_model is model.model:
            reads.append(read_model)
        return read(read_model)

    monkeypatch.setattr(weight_index, "all_weights", note)
    optimizers = [SGD(set_gradients(each(model).parameters()), lr=0.1) for each in (tower, text)]
    for _ in range(STEPS):
        logits(model.train(), prompt)
        for optimizer in optimizers:
            optimizer.step()
        attachment.invalidate()
    assert len(reads) == 1
    assert set(attachment.stats().changes) == {OPTIMIZER, TRAINING, INVALIDATED}
    with torch.no_grad():
        next(tower(model).parameters()).add_(1)
    logits(model.eval(), prompt)
    for optimizer in optimizers:
        optimizer.step()
    assert len(reads) == 2


def test_log_names_the_first_weight_of_the_optimizer(caplog: pytest.LogCaptureFixture) -> None:
    _, model, attachment, _ = pair(GEMMA)
    name, weight = next(iter(tower(model).named_parameters()))
    with caplog.at_level("INFO", logger="vitcache.adapters"):
        for _ in range(STEPS):
            SGD(set_gradients([weight]), lr=0.1).step()
    assert steps_of(attachment) == STEPS
    assert [name in record.getMessage() for record in caplog.records] == [True]


class OddOptimizer(Optimizer):
    """An optimizer whose group has an iterator, which its step uses after the hook of torch."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__(weights, {})
        self.param_groups[0]["params"] = iter(weights)

    def step(self, closure: Any = None) -> None:
        """Write nothing."""


def test_step_of_an_optimizer_with_unknown_groups_forgets_and_reads_no_iterator() -> None:
    _, model, attachment, _ = pair(GEMMA)
    weights = list(text(model).parameters())
    optimizer = OddOptimizer(weights)
    optimizer.step()
    assert steps_of(attachment) == 1
    assert len(list(optimizer.param_groups[0]["params"])) == len(weights)


class InterruptedOptimizer(SGD):
    """Writes the weights without a new version, and is then interrupted."""

    def step(self, closure: Any = None) -> None:
        for weight in self.param_groups[0]["params"]:
            weight.data.mul_(2)
        raise KeyboardInterrupt


def test_step_that_was_interrupted_gives_the_stock_logits() -> None:
    stock, model, attachment, _ = pair(GEMMA)
    prompt = GEMMA.prompt(stock, 0)
    before = logits(model, prompt)
    for each in (stock, model):
        with pytest.raises(KeyboardInterrupt):
            InterruptedOptimizer(set_gradients(tower(each).parameters())).step()
    after = logits(stock, prompt)
    assert torch.equal(logits(model, prompt), after)
    assert not torch.equal(before, after)
    assert attachment.stats().encoded == 2


@pytest.mark.parametrize("groups", [[{}], [{"params": ["a name"]}], None, 3])
def test_step_of_an_optimizer_with_groups_of_another_form_does_not_raise(groups: Any) -> None:
    _, _, attachment, _ = pair(GEMMA)
    optimizer = OddOptimizer([nn.Parameter(torch.ones(1))])
    optimizer.param_groups = groups
    optimizer.step()
    assert steps_of(attachment) == 1


@pytest.mark.parametrize("weight", [torch.ones(2, device="meta"), torch.eye(2).to_sparse(), torch.ones(0)])
def test_step_of_a_tensor_without_memory_keeps_the_entries(weight: Tensor) -> None:
    _, model, attachment, _ = pair(GEMMA)
    tower(model).register_buffer("empty", torch.ones(0))
    tower(model).register_buffer("offloaded", torch.ones(2, device="meta"))
    optimizer = OddOptimizer([nn.Parameter(torch.ones(1))])  # its step writes nothing
    optimizer.param_groups = [{"params": [nn.Parameter(weight)]}]
    optimizer.step()
    assert steps_of(attachment) == 0


def test_step_with_weights_of_two_models_is_noticed_by_both_attachments_only() -> None:
    attachments = [pair(GEMMA)[1:3] for _ in range(3)]
    weights = [set_gradients(tower(model).parameters()) for model, _ in attachments]
    SGD([*weights[0], *weights[2]], lr=0.1).step()
    assert [steps_of(attachment) for _, attachment in attachments] == [1, 0, 1]


def test_step_after_detach_is_not_noticed_and_detach_may_be_repeated() -> None:
    _, model, attachment, _ = pair(GEMMA)
    optimizer = SGD(set_gradients(tower(model).parameters()), lr=0.1)
    for _ in range(2):
        attachment.detach()
        optimizer.step()
    assert steps_of(attachment) == 0
    again = attach(model)
    optimizer.step()
    assert (steps_of(attachment), steps_of(again)) == (0, 1)


def test_step_keeps_neither_session_nor_model_nor_optimizer_in_memory() -> None:
    model = nn.ModuleDict({"tower": nn.Linear(2, 2), "language_model": nn.Linear(2, 2)})
    session = Session(model, "tower", make_cache(width=2), Namespace("model"), None, 0)
    watch_optimizers(session)
    optimizer = SGD(set_gradients(model["tower"].parameters()), lr=0.1)
    optimizer.step()
    assert session.changes.counts == {OPTIMIZER: 1}
    freed = [weakref.ref(each) for each in (model, session, optimizer)]
    del model, session, optimizer
    gc.collect()
    assert [each() for each in freed] == [None] * 3
    SGD([nn.Parameter(torch.ones(1))], lr=0.1).step()  # no session is left for the hook


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_step_of_a_copy_of_the_model_is_not_noticed(make_copy: Callable[[Any], Any]) -> None:
    model = GEMMA.model()
    attachment = attach(model)
    copied = make_copy(model)
    SGD(set_gradients(tower(copied).parameters()), lr=0.1).step()
    assert steps_of(attachment) == 0
    copied_attachment = attach(copied)
    SGD(set_gradients(tower(copied).parameters()), lr=0.1).step()
    assert (steps_of(attachment), steps_of(copied_attachment)) == (0, 1)


def test_steps_while_other_threads_attach_and_detach_never_raise() -> None:
    model, others = GEMMA.model(), [GEMMA.model() for _ in range(2)]
    attachment = attach(model)
    optimizer = SGD(set_gradients(tower(model).parameters()), lr=0.1)
    stop = threading.Event()

    def attach_often(other: nn.Module) -> None:
        while not stop.is_set():
            attach(other, device_bytes="1MiB").detach()

    threads = [threading.Thread(target=attach_often, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    steps = 0
    try:
        for steps in itertools.count(1):
            optimizer.step()
            if steps == 200:
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert steps_of(attachment) == steps
