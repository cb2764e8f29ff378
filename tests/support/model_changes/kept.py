"""Changes that leave the rows of an image as they are: the entries stay."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import optim

from model_changes.change import KEPT, SEVERAL, change
from model_changes.random_weights import fill, set_gradients
from model_changes.scene import Scene

ROW = "a change of the language model"
OTHER = "a call that alters no row"


@change(ROW, "an optimizer's step", noticed=KEPT, families=SEVERAL)
def step(scene: Scene) -> Iterator[None]:
    weights = list(scene.model.base_model.language_model.parameters())
    optimizer = optim.AdamW(weights, lr=0.1, fused=True)
    yield
    set_gradients(weights)
    optimizer.step()
    yield


@change(ROW, "an optimizer of all weights with a frozen tower", noticed=KEPT)
def frozen(scene: Scene) -> Iterator[None]:
    weights = list(scene.model.base_model.language_model.parameters())
    optimizer = optim.AdamW(weights, lr=0.1)
    scene.tower.requires_grad_(False)
    yield
    scene.model(**scene.prompt).logits.sum().backward()
    optimizer.step()
    yield


@change(ROW, "writes in place", noticed=KEPT)
def written(scene: Scene) -> Iterator[None]:
    yield
    fill(scene.model.base_model.language_model.parameters())
    yield


@change(ROW, "a LoRA of the language model is added, switched and disabled", noticed=KEPT)
def lora(scene: Scene) -> Iterator[None]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=scene.text_targets, r=2, init_lora_weights=False)
    peft_model = get_peft_model(scene.model, config, "a").eval()
    peft_model.add_adapter("b", config)
    yield
    peft_model.set_adapter("b")
    yield
    with peft_model.disable_adapter():
        yield
    yield


@change(
    OTHER,
    "`eval`, `requires_grad_`, `zero_grad`, `state_dict`, `generate`, `to` the same dtype",
    noticed=KEPT,
)
def harmless(scene: Scene) -> Iterator[None]:
    yield
    scene.model.eval()
    scene.model.requires_grad_(False)
    scene.model.zero_grad()
    scene.model.to("cpu").to(torch.float32)
    yield
    scene.tower.requires_grad_(True)
    scene.model.state_dict()
    scene.model.generate(**scene.prompt, max_new_tokens=2)
    yield


@change(ROW, "a training step with a frozen tower", noticed=KEPT, families=SEVERAL)
def trained(scene: Scene) -> Iterator[None]:
    scene.model.requires_grad_(False)
    weights = list(scene.model.base_model.language_model.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = optim.AdamW(weights, lr=0.1, fused=True)
    yield
    scene.model.train()
    scene.model(**scene.prompt).logits.sum().backward()
    optimizer.step()
    scene.model.eval()
    yield


@change(
    OTHER, "checkpoints of activations are switched on and off, as TRL does for each rollout", noticed=KEPT
)
def checkpointed(scene: Scene) -> Iterator[None]:
    yield
    scene.model.gradient_checkpointing_enable()
    yield
    scene.model.gradient_checkpointing_disable()
    yield


@change(OTHER, "`enable_input_require_grads`, `disable_input_require_grads`", noticed=KEPT)
def input_gradients(scene: Scene) -> Iterator[None]:
    yield
    scene.model.enable_input_require_grads()
    yield
    scene.model.disable_input_require_grads()
    scene.model.enable_input_require_grads()
    yield
