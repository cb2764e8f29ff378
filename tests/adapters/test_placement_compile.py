"""`torch.compile` of an attached model: graphs have no code of vitcache, and give the stock results."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import generate, logits, plain_kernels  # noqa: F401
from ready_models import placed, ready
from tiny_models import FAMILIES, Call
from tiny_zoo import ZOO, ZooModel, stock_each
from torch import Tensor, nn
from torch_version import IS_OLDEST

from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels", "fresh_dynamo")]

QUICK = ("llava", "gemma3", "paligemma", "qwen3_vl")
also_slow = pytest.mark.parametrize("name", ["gemma3", pytest.param("qwen3_vl", marks=pytest.mark.soak)])
STOCK_DOES_NOT_COMPILE = ("florence2", "hunyuan_vl", "ovis2", "qwen4_exp", "step3p7")
"""Florence-2's forward takes no features; the other four branch on data."""
GIVEN_POSITIONS = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "cosmos3_omni"),
    *("cosmos3_edge", "cohere_compass", "glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr", "paddleocr_vl"),
    *("ernie4_5_vl_moe", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "qwen2_5_omni", "qwen3_omni_moe"),
    "minicpmv4_7",
)
"""Stock forwards that compile to one graph if the caller gives the positions: they read ids for them."""

COMPILES = [
    pytest.param(zoo, marks=() if name in QUICK else pytest.mark.soak, id=name)
    for name, zoo in ZOO.items()
    if "image" in zoo.media and name not in STOCK_DOES_NOT_COMPILE
]

NO_STOCK_GRAPH = pytest.mark.skipif(IS_OLDEST, reason="torch 2.9 compiles no stock forward to one graph")


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@NO_STOCK_GRAPH
@pytest.mark.parametrize("zoo", COMPILES)
@torch.no_grad()
def test_forward_with_given_features_compiles_to_one_graph_as_the_stock_forward_does(zoo: ZooModel) -> None:
    if not zoo.exists:
        pytest.skip(f"transformers lacks {zoo.lacks}")
    stock, model = zoo.model(), zoo.model()
    owner = zoo.features_owner(stock)
    if "mm_encoder_outputs" not in inspect.signature(owner.forward).parameters:
        pytest.skip("this transformers has no mm_encoder_outputs")
    prompt = zoo.prompt(stock, "image", 0, 1)
    stock_each(zoo, stock, "image")(0, 1)
    attach(model)
    zoo.logits(model, prompt)
    expected, found = (compiled_logits(zoo, each, prompt) for each in (stock, model))
    assert torch.equal(found, expected)


def compiled_logits(zoo: ZooModel, model: nn.Module, prompt: Call) -> Tensor:
    medium = zoo.media["image"]
    call = medium.join([medium.make(0), medium.make(1)])
    features = zoo.features_owner(model).get_image_features(**call, return_dict=True)
    text = {name: value for name, value in prompt.items() if name != next(iter(call))}
    if zoo.name in GIVEN_POSITIONS:
        text["position_ids"] = torch.arange(prompt["input_ids"].shape[1]).expand(3, 1, -1)
    compiled = torch.compile(model.get_submodule(zoo.head), backend="eager", fullgraph=True)
    return compiled(**text, mm_encoder_outputs={"image": features}).logits


@also_slow
@torch.no_grad()
def test_compiled_model_with_pixels_gives_the_stock_logits(name: str) -> None:
    stock, model, attachment, prompt = ready(name)
    expected = logits(torch.compile(stock, backend="eager"), prompt)
    compiled, found = torch.compile(model, backend="eager"), []
    # Calls that are traced are not counted.
    assert placed(attachment, lambda: found.extend(logits(compiled, prompt) for _ in range(2))) == (0, {})
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
    assert placed(attachment, lambda: found.append(logits(model, prompt))) == (1, {})
    assert torch.equal(found[2], logits(stock, prompt))


def by_forward(model: nn.Module) -> Callable[[], None]:
    model.forward = torch.compile(model.forward, backend="eager")
    return lambda: delattr(model, "forward")


def by_method(model: nn.Module) -> Callable[[], None]:
    model.compile(backend="eager")
    return lambda: setattr(model, "_compiled_call_impl", None)


@pytest.mark.parametrize("compile_model", [by_forward, pytest.param(by_method, marks=pytest.mark.soak)])
@also_slow
def test_generate_with_a_compiled_forward_gives_the_stock_tokens(name: str, compile_model: Any) -> None:
    stock, model, attachment, prompt = ready(name)
    expected = generate(stock, prompt)
    undo, found = compile_model(model), []
    assert placed(attachment, lambda: found.append(generate(model, prompt))) == (0, {})
    undo()
    assert torch.equal(found[0][0], expected[0])
    assert placed(attachment, lambda: found.append(generate(model, prompt))) == (1, {})
    assert torch.equal(found[1][1], expected[1])


@pytest.mark.soak
@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl"])
def test_generate_in_a_compiled_function_gives_the_stock_tokens(name: str) -> None:
    stock, model, _, prompt = ready(name)
    compiled = torch.compile(lambda: generate(model, prompt)[0], backend="eager")
    assert torch.equal(compiled(), generate(stock, prompt)[0])


def test_compiled_forward_after_an_interrupted_one_gives_the_stock_logits() -> None:
    stock, model, _, prompt = ready("gemma3")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.base_model.language_model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        logits(model, prompt)
    hook.remove()
    assert torch.equal(logits(torch.compile(model, backend="eager"), prompt), logits(stock, prompt))


@NO_STOCK_GRAPH
@torch.no_grad()
def test_copy_of_an_attached_model_compiles_to_one_graph() -> None:
    family = FAMILIES["gemma3"]
    model = family.model()
    prompt = family.prompt(model, 0)
    attach(model)
    features = model.get_image_features(**family.call(0), return_dict=True)
    text = {name: value for name, value in prompt.items() if name != "pixel_values"}
    found = [
        torch.compile(each, backend="eager", fullgraph=True)(
            **text, mm_encoder_outputs={"image": features}
        ).logits
        for each in (family.model(), copy.deepcopy(model))
    ]
    assert torch.equal(*found)
