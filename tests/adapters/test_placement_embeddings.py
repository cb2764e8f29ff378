"""Placement beside token embeddings that are hooked, wrapped, split over ranks or modules of the user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import generate, logits, pair, plain_kernels  # noqa: F401
from peft import LoraConfig, get_peft_model
from ready_models import each_kind, placed, ready
from tiny_models import FAMILIES, one_at_a_time
from torch import Tensor, nn
from torch.distributed import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.modules.module import register_module_forward_hook
from torch_version import IS_OLDEST

from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


class SameTensor(nn.Module):
    """A token embedding that returns the same tensor for the same tokens."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding, self.kept = embedding, {}
        self.weight = embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.kept.setdefault(tuple(ids.flatten().tolist()), self.embedding(ids))


class ViewOfSameTensor(SameTensor):
    """A token embedding that returns a view of the same tensor for the same tokens."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids)[:]


@each_kind
@pytest.mark.parametrize("kind", [SameTensor, ViewOfSameTensor])
@torch.no_grad()
def test_embedding_of_the_user_that_keeps_its_output_is_not_written(name: str, kind: Any) -> None:
    stock, model, attachment, prompt = ready(name)
    expected = logits(stock, prompt)
    model.set_input_embeddings(kind(model.get_input_embeddings()))
    for _ in range(3):
        assert torch.equal(logits(model, prompt), expected)
    text = model.get_input_embeddings()
    assert torch.equal(text(prompt["input_ids"]), text.embedding(prompt["input_ids"]))
    assert attachment.stats().unplaced_calls == {}


def keep_by_hook(embedding: nn.Module, kept: list[Tensor]) -> Callable[[], None]:
    return embedding.register_forward_hook(lambda module, args, output: kept.append(output)).remove


def keep_by_global_hook(embedding: nn.Module, kept: list[Tensor]) -> Callable[[], None]:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if module is embedding:
            kept.append(output)

    return register_module_forward_hook(keep).remove


def keep_by_forward(embedding: nn.Module, kept: list[Tensor]) -> Callable[[], None]:
    stock = embedding.forward

    def forward(*args: Any) -> Tensor:
        kept.append(stock(*args))
        return kept[-1]

    embedding.forward = forward
    return lambda: None


@each_kind
@pytest.mark.parametrize("keep", [keep_by_hook, keep_by_global_hook, keep_by_forward])
@torch.no_grad()
def test_kept_output_of_the_embedding_has_the_text_rows(name: str, keep: Any) -> None:
    stock, model, attachment, prompt = ready(name)
    kept: list[Tensor] = []
    remove = keep(model.get_input_embeddings(), kept)
    assert placed(attachment, lambda: logits(model, prompt)) == (1, {})
    remove()
    assert len(kept) == 1
    assert torch.equal(kept[0], stock.get_input_embeddings()(prompt["input_ids"]))


def embeds_by_hook(model: nn.Module, embeds: Tensor) -> None:
    def give(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return args, kwargs | {"input_ids": None, "inputs_embeds": embeds}

    model.register_forward_pre_hook(give, with_kwargs=True)


def embeds_by_forward(model: nn.Module, embeds: Tensor) -> None:
    stock = model.forward
    model.forward = lambda **kwargs: stock(**kwargs | {"input_ids": None, "inputs_embeds": embeds})


@pytest.mark.parametrize("give", [embeds_by_hook, embeds_by_forward])
@torch.no_grad()
def test_embeddings_that_the_user_puts_into_the_call_are_not_written(give: Any) -> None:
    stock, model, _, prompt = ready("gemma3")
    embeds = stock.get_input_embeddings()(prompt["input_ids"])
    given = embeds.clone()
    give(model.base_model, given)
    for _ in range(2):
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
    assert torch.equal(given, embeds)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("target", ["embed_tokens", "q_proj"])
@torch.no_grad()
def test_lora_attached_before_or_after_gives_the_logits_of_the_adapted_model(when: str, target: str) -> None:
    family = FAMILIES["qwen3_vl"]
    config = LoraConfig(target_modules=rf".*language_model.*{target}", r=2, init_lora_weights=False)
    adapted = []
    for attached in (False, True):
        model: Any = family.model()
        prompt = family.prompt(model, 0, 1)
        inner = model
        if attached and when == "before":
            attachment = attach(model)
        torch.manual_seed(3)
        model = get_peft_model(model, config).eval()
        if attached and when == "after":
            attachment = attach(model)
        if not attached:
            one_at_a_time(family, inner)
        adapted.append(model)
    stock, model = adapted
    for _ in range(2):
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
    for ours, theirs in zip(generate(model, prompt), generate(stock, prompt), strict=True):
        assert torch.equal(ours, theirs)
    plain = logits(one_at_a_time(family, family.model()), prompt)
    assert not torch.equal(logits(model, prompt), plain)
    stats = attachment.stats()
    assert (stats.placed_calls, stats.unplaced_calls) == (4, {})


@pytest.fixture
def mesh(tmp_path: Any) -> Iterator[DeviceMesh]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("style", ["rows", "columns"])
@torch.no_grad()
def test_tensor_parallel_embedding_gives_the_stock_logits(style: str, mesh: DeviceMesh) -> None:
    family = FAMILIES["gemma3"]
    stock, model, attachment, _ = pair(family)
    prompt = family.prompt(stock, 0, 1)
    expected = logits(stock, prompt)
    plan = {
        "rows": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()),
        "columns": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model.get_input_embeddings(), mesh, plan[style])
    for _ in range(2):
        assert torch.equal(logits(model, prompt), expected)
    stats = attachment.stats()
    if IS_OLDEST and style == "rows":  # torch 2.9 returns a subclass of Tensor: the stock forward merges
        reason = "the text embeddings have another dtype, device or layout than the features"
        assert (stats.placed_calls, stats.unplaced_calls) == (0, {reason: 2})
    else:
        assert (stats.placed_calls, stats.unplaced_calls) == (2, {})


@pytest.mark.parametrize("how", ["align", "offload"])
@torch.no_grad()
def test_hooks_of_accelerate_leave_the_stock_logits(how: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    stock, model, attachment, prompt = ready("qwen3_vl")
    expected = logits(stock, prompt)
    if how == "align":
        for module in (model.get_input_embeddings(), model.base_model, model):
            accelerate.hooks.add_hook_to_module(
                module, accelerate.hooks.AlignDevicesHook("cpu", io_same_device=True)
            )
    else:
        accelerate.cpu_offload(model, execution_device="cpu")
    for _ in range(2):
        assert torch.equal(logits(model, prompt), expected)
    assert attachment.stats().placed_calls == 3
    attachment.detach()
    assert torch.equal(logits(model, prompt), logits(FAMILIES["qwen3_vl"].model(), prompt))
