"""`InvalidateCallback`: an attached model that a `Trainer` trains gives the stock logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attached import GEMMA, logits
from tiny_models import one_at_a_time
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainingArguments

from vitcache import InvalidateCallback
from vitcache.adapters.changes.model_changes import INVALIDATED, OPTIMIZER
from vitcache.adapters.transformers import Attachment, attach

STEPS = 2


class MasterCopies(Optimizer):
    """Steps copies of the weights, and writes them to the weights through `.data`."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        self.weights = weights
        super().__init__([nn.Parameter(weight.detach().clone()) for weight in weights], {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for master, weight in zip(self.param_groups[0]["params"], self.weights, strict=True):
            if weight.grad is not None:
                weight.data.copy_(master.sub_(weight.grad, alpha=0.1))


class Evaluation(TrainerCallback):
    """Compares the model with the stock model, before and after each step, in evaluation mode."""

    def __init__(self, model: nn.Module, prompt: Any) -> None:
        self.model, self.prompt = model, prompt
        self.stock = one_at_a_time(GEMMA, GEMMA.model())
        self.seen: list[torch.Tensor] = []

    def compare(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        was_training = self.model.training
        self.stock.load_state_dict(self.model.state_dict())
        self.stock.eval()
        self.model.eval()
        self.seen.append(logits(self.stock, self.prompt))
        assert torch.equal(logits(self.model, self.prompt), self.seen[-1])
        self.model.train(was_training)

    on_train_begin = on_pre_optimizer_step = on_step_end = on_train_end = compare


def train(
    attachment: Attachment, model: nn.Module, folder: Path, masters: bool, **options: Any
) -> list[torch.Tensor]:
    """Train, with the callback; return the logits of the stock model at each comparison."""
    prompt = GEMMA.prompt(model, 0)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, learning_rate=0.1, use_cpu=True, report_to=[], **options
    )
    evaluation = Evaluation(model, prompt)
    trainer = Trainer(
        model,
        arguments,
        data_collator=lambda items: items[0],
        train_dataset=[{**prompt, "labels": prompt["input_ids"]}] * STEPS,
        eval_dataset=[{**prompt, "labels": prompt["input_ids"]}],
        callbacks=[InvalidateCallback(attachment), evaluation],
        optimizers=(MasterCopies(trained) if masters else None, None),
    )
    trainer.train()
    return evaluation.seen


@pytest.mark.parametrize("masters", [False, True])
def test_training_gives_the_stock_logits_after_each_step(masters: bool, tmp_path: Path) -> None:
    model = GEMMA.model()
    attachment = attach(model)
    options = {} if masters else {"optim": "adamw_torch_fused"}
    seen = train(attachment, model, tmp_path, masters, save_strategy="no", **options)
    before, after = seen[1::2][:STEPS], seen[2::2][:STEPS]
    assert not any(map(torch.equal, before, after))
    changes = attachment.stats().changes
    assert changes.get(OPTIMIZER, 0) == (0 if masters else STEPS)
    assert changes[INVALIDATED] > STEPS


def test_training_gives_the_stock_logits_after_the_best_model_was_loaded(tmp_path: Path) -> None:
    model = GEMMA.model()
    attachment = attach(model)
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    seen = train(attachment, model, tmp_path, True, load_best_model_at_end=True, **options)
    assert len(seen) == 2 + 2 * STEPS
    assert attachment.stats().changes[INVALIDATED] > STEPS


def test_training_with_a_frozen_tower_keeps_the_entries(tmp_path: Path) -> None:
    model = GEMMA.model()
    model.requires_grad_(False)
    model.model.language_model.requires_grad_(True)
    attachment = attach(model)
    train(attachment, model, tmp_path, False, save_strategy="no", optim="adamw_torch_fused")
    assert {OPTIMIZER, INVALIDATED} & {*attachment.stats().changes} == set()


def test_callback_invalidates_only_attachments_with_a_trainable_tower() -> None:
    frozen, trained = GEMMA.model(), GEMMA.model()
    frozen.model.vision_tower.requires_grad_(False)
    frozen.model.multi_modal_projector.requires_grad_(False)
    attachments = [attach(frozen), attach(trained)]
    callback = InvalidateCallback(*attachments)
    callback.on_optimizer_step(None, None, None, model=trained)
    assert [each.stats().changes for each in attachments] == [{}, {INVALIDATED: 1}]


@pytest.mark.parametrize("wrong", [(), (None,), (GEMMA,)])
def test_callback_of_wrong_arguments_is_refused(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="attachment"):
        InvalidateCallback(*wrong)
