"""`attach` sees through the wrappers that users have around a model."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from attached import plain_kernels  # noqa: F401
from peft import LoraConfig, get_peft_model
from tiny_models import FAMILIES, Call, one_at_a_time
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from vitcache.adapters.transformers import ChunkedPrefill, attach, image_items, vision_pipeline
from vitcache.adapters.wrappers import unwrap

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

FAMILY = FAMILIES["internvl"]


class Pipeline(transformers.Pipeline):
    """A pipeline that returns the logits of a prompt."""

    def _sanitize_parameters(self, **options: Any) -> tuple[Call, Call, Call]:
        return {}, {}, {}

    def preprocess(self, prompt: Call) -> Call:
        return prompt

    def _forward(self, prompt: Call) -> Any:
        return {"logits": self.model(**prompt).logits}

    def postprocess(self, output: Any) -> Tensor:
        return output["logits"]


def in_peft(model: nn.Module) -> Any:
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2)).eval()


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def sharded(model: nn.Module) -> Any:
    for block in model.model.vision_tower.encoder.layer:
        fully_shard(block)
    fully_shard(model.model.vision_tower)
    return fully_shard(model)


def in_ddp(model: nn.Module) -> Any:
    return DistributedDataParallel(model)


WRAPPERS = {
    "PeftModel": in_peft,
    "DistributedDataParallel": in_ddp,
    "DataParallel": nn.DataParallel,
    "FSDP2": sharded,
    "torch.compile": compiled,
    "DistributedDataParallel of PeftModel": lambda model: in_ddp(in_peft(model)),
    "pipeline": lambda model: Pipeline(model=model, device="cpu"),
}


@pytest.fixture(params=WRAPPERS)
def wrap(request: pytest.FixtureRequest) -> Iterator[Any]:
    needs_group = request.param.startswith(("Distributed", "FSDP"))
    if needs_group:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {"init_method": f"tcp://127.0.0.1:{port}", "rank": 0, "world_size": 1}
        torch.distributed.init_process_group("gloo", **options)
    yield WRAPPERS[request.param]
    if needs_group:
        torch.distributed.destroy_process_group()


@torch.no_grad()
def logits(model: Any, prompt: Call) -> Tensor:
    output = model(prompt) if isinstance(model, Pipeline) else model(**prompt)
    return output if isinstance(output, Tensor) else output.logits


@torch.no_grad()
def test_attach_wrapped_model_gives_the_stock_logits_and_encodes_each_image_once(wrap: Any) -> None:
    stock, wrapped = one_at_a_time(FAMILY, FAMILY.model()), wrap(FAMILY.model())
    prompts = [FAMILY.prompt(FAMILY.model(), *seeds) for seeds in ((0,), (1, 0))]
    logits(wrapped, prompts[0])  # compiled before attach
    attachment = attach(wrapped)
    for prompt in prompts:
        assert torch.equal(logits(wrapped, prompt), logits(stock, prompt))
    stats = attachment.stats()
    assert (stats.encoded, stats.hits, stats.bypassed) == (2, 1, 0)
    with pytest.raises(RuntimeError, match="attached already"):
        attach(wrapped)
    attachment.detach()
    logits(wrapped, prompts[0])
    assert attachment.stats() == stats


def test_vision_pipeline_and_chunked_prefill_take_a_wrapped_model() -> None:
    family = FAMILIES["qwen2_5_vl"]
    model = family.model()
    plain = family.prompt(model, 0, 1)
    wrapped = compiled(in_peft(model))
    logits = []
    for each in (wrapped, model):
        items = image_items(each, plain["input_ids"], plain["pixel_values"], plain["image_grid_thw"])
        driver = ChunkedPrefill(each, vision_pipeline(each), chunk_tokens=8)
        logits.append(driver.prefill(plain["input_ids"][0], items))
    assert torch.equal(*logits)


def test_unwrap_returns_the_model_and_leaves_other_objects_alone() -> None:
    model = FAMILY.model()
    assert unwrap(compiled(nn.DataParallel(model))) is model
    assert unwrap(Pipeline(model=model, device="cpu")) is model
    plain = nn.Sequential(nn.Linear(2, 2))
    assert unwrap(plain) is plain
    assert unwrap(17) == 17


def test_attach_object_that_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="model must be a transformers model, got str"):
        attach("Qwen/Qwen3-VL-8B-Instruct")
