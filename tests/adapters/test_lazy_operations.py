"""Lazy features beside plain tensors: the operations that keep features lazy, and others."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from lazy_scene import HIDDEN, LazyScene, outcome, same, stock_caller  # noqa: F401
from torch import Tensor

from vitcache.adapters.lazy_features import LazyFeatures

pytestmark = pytest.mark.usefixtures("stock_caller")

SCENES: list[tuple[int, torch.dtype, torch.dtype | None, Callable[[Any], Any]]] = [
    (0, torch.float32, None, lambda t: t),
    (1, torch.bfloat16, torch.float32, lambda t: t),
    (2, torch.bfloat16, None, lambda t: torch.cat([t[5:], t[:5]])),
    (2, torch.bfloat16, torch.float32, lambda t: torch.cat([t, t])[3:15]),
]
"""Levels, dtypes of the features and of the cache, and a function that arranges the rows ``(12, 4)``."""

STAY_LAZY = """
torch.cat([t])|torch.cat((t, t), 0)|torch.cat([t[5:], t[:0], t[:5]], dim=0)
torch.cat([t.unflatten(0, (3, 4)), t.unflatten(0, (3, 4))[1:]])|torch.stack([t, t])
torch.stack((t[:3], t[4:7]), dim=0)|t.to(torch.float16)|t.to("cpu", torch.float16)
t.to(device="cpu", dtype=torch.float16, non_blocking=True)|t.to("cpu")|t.to(t.dtype)
t.to(None, torch.float16)|t.to(tensor(1, dtype=torch.float16))|t[2:7]|t[-3:]|t[:-3]|t[5:2]|t[20:]|t[-100:5]
t[:]|t[slice(1, 3, 1)]|t[tensor(1):tensor(4)]|t[None]|t[tensor([0, 1])]|t[tensor([11, 3, 3, 4])]
t.unflatten(0, (3, 4))[1]|t.unflatten(0, (3, 4))[-1]|t.unflatten(0, (3, 4))[1:]
t.unflatten(0, (3, 4)).unbind()|list(t.unflatten(0, (3, 4)))|t.split_with_sizes([3, 2, 7])
t.split_with_sizes((12, 0), 0)|t.reshape(-1, 4)|t.reshape((2, 6, 4))|t.view(3, -1, 4)
t.unflatten(0, (-1, 6))|t.unsqueeze(1)|t[None].flatten(0, 1)|t.unsqueeze(dim=0)|t.repeat(2, 1)
t.repeat(0, 1)|t.repeat((3, 1))|t.unflatten(0, (3, 4)).repeat(2, 1, 1)|t.contiguous()|t.detach()|t.clone()
copy.deepcopy(t)|t.to(torch.float16)[2:5]|t[:0].repeat(2, 1)|t[:0].view(0, 5, 4)
t.split_with_sizes([3, 9], dim=0)
"""

TAKE_MEMORY = """
t + 1|t * t|t @ t.T|torch.add(t, 1, out=torch.empty_like(t))|torch.where(t > 0, t, 0)|t == t|t.sum(0)
t.max(0)[1]|t.numpy()|np.asarray(t)|t.tolist()|t[0, 0].item()|t.item()|repr(t)|f"{t}"|float(t[0, 0])|bool(t)
bool(t[:0])|list(t)|pickle.loads(pickle.dumps(t))|saved(t)|copy.copy(t)|torch.from_dlpack(t)
t.untyped_storage().nbytes() > 0|t.to(t)|t.cpu()|t.half()|t.double()|t.type(torch.float16)|t.type()
t.view(torch.uint8)|t.view(torch.int16)|t.T|t.mT|t.transpose(0, 1)|t.permute(1, 0)|t.view(-1, 2)
t.view(5, 5)|t.view(12, 4, 1)|t.reshape(-1)|t.reshape(7, -1)|t[t > 0]|t[t[:, 0] > 0]|t[-1]|t[12]|t[-13]
t[np.int64(2)]|t[True]|t[1, 2]|t[1:3, 2]|t[::2]|t[1:9:3]|t[::-1]|t[...]|t[..., 0]|t[None, None]|t[1.5:3]
t[tensor(3)]|t[tensor([-1, 0])]|t[tensor([12])]|t[tensor([-13])]|t[[0, 1]]|t["a"]
t[tensor([], dtype=torch.int64)]|t[tensor([0, 1], dtype=torch.int32)]|t[tensor([0, 1], dtype=torch.uint8)]
t[()]|t[tensor([[0, 1], [2, 3]])]|t[tensor([0, 1]), 0]|t[[True] * 12]|t[np.array([0, 3])]|t[(slice(0, 3),)]
t[1.0]|t.unflatten(0, (3, 4))[3]|t.unflatten(0, (3, 4))[1, 2]|t.unflatten(0, (3, 4))[tensor([2, 0])]
t.unflatten(0, (5, 6))|t.split(5)|t.split([3, 9])|t.split_with_sizes([3, 2])|t.split_with_sizes([3, 10])
t.split_with_sizes([-1, 13])|t.split_with_sizes([1, 3], 1)|t.split_with_sizes([3, 9], -2)
t.split_with_sizes(split_sizes=[3, 9])|t.split_with_sizes([])|t.split_with_sizes(12)
t.split_with_sizes([2.5, 9.5])|t.split_with_sizes([3, 9], dim=5)|torch.cat([t, t], dim=-1)
torch.cat([t, t], -2)|torch.cat([t, t], axis=0)|torch.cat([t, torch.zeros(2, 4)])
torch.cat([torch.zeros(2, 4), t])|torch.cat([t, t.double()])|torch.cat([t, tensor([])])
torch.cat([t, t[None]])|torch.cat([t, t], out=torch.empty(24, 4, dtype=t.dtype))|torch.cat(t)
torch.cat([t, 1])|torch.cat([t, t], dim=2)|torch.cat([t.unflatten(0, (3, 4)), t.unflatten(0, (4, 3))])
torch.stack([t, t[:3]])|torch.stack([t, t], dim=-1)|torch.stack([torch.zeros_like(t), t])
torch.stack([t], out=torch.empty(1, 12, 4, dtype=t.dtype))|torch.stack(t[None])|t.repeat(2, 2)|t.repeat(2)
t.repeat()|t.repeat(2, 1, 1)|t.repeat(-1, 1)
t.repeat(repeats=(2, 1))|t.repeat((2, 1), 1)|t.repeat(2.5, 1)|t.repeat_interleave(2, 0)|t.expand(2, -1, -1)
t.to(torch.float64)|t.to(torch.int64)|t.to(torch.float16, copy=True)|t.to(t.dtype, False, True)|t.to("cuda")
t.to(None)|t.to("cpu", torch.float16, True, True)|t.to(torch.float16).to(torch.bfloat16)
t.to(torch.float64).to(torch.float16)|t.to(torch.float16, memory_format=torch.preserve_format)
t.to(memory_format=torch.channels_last)|t.to("nonsense")|t.to(other=tensor(1, dtype=torch.float16))
tensor(1).to(t)|t.clone(memory_format=torch.channels_last)|torch.clone(input=t)
torch.reshape(input=t, shape=(2, 6, 4))|torch.unbind(input=t[None])|t.squeeze(5)|t.unbind(1)
torch.as_tensor(t)|torch.tensor(t)|torch.zeros_like(t)|t.new_tensor([1.0])|t.data|t.grad|torch.equal(t, t)
torch.nn.functional.linear(t, torch.eye(4, dtype=t.dtype))|torch.nn.utils.rnn.pad_sequence([t, t[:3]])
t.add_(1)|t.zero_()|t.copy_(torch.zeros(12, 4))|t.masked_fill_(t > 0, 0)
torch.add(torch.ones_like(t), 1, out=t)|t.masked_scatter(t > 0, t)
torch.zeros(12, 4, dtype=t.dtype).masked_scatter_(t > 0, t)|torch._foreach_add([t], 1)|torch.concat([t, t])
torch.unbind(t.unflatten(0, (3, 4)), dim=0)|torch.split_with_sizes(t, [3, 9], dim=0)
torch.reshape(t, (1, 12, 4))|t[None].squeeze(0)|t[None].squeeze()|torch.flatten(t[None], 0, 1)
torch.clone(t)
"""

METADATA = """
t.shape|t.size()|t.size(-1)|t.size(5)|t.stride()|t.dim()|t.ndim|t.numel()|t.nbytes|t.itemsize
t.element_size()|t.dtype|t.device|t.layout|len(t)|t.is_contiguous()|t.is_floating_point()|t.is_cuda
t.is_leaf|t.requires_grad|t.grad_fn|isinstance(t, Tensor)|torch.is_tensor(t)|hash(t) == hash(t)|{t: 1}[t]
t.get_device()|t.nonexistent
"""

NAMES = {
    "torch": torch,
    "tensor": torch.tensor,
    "Tensor": Tensor,
    "np": np,
    "copy": copy,
    "pickle": pickle,
    "saved": lambda t: torch.load(io.BytesIO(saved(t))),
}


def expressions(lines: str) -> list[str]:
    return [part.strip() for line in lines.split("\n") for part in line.split("|") if part.strip()]


def evaluated(expression: str, t: Tensor) -> Any:
    return outcome(eval, expression, NAMES | {"t": t})


def saved(t: Tensor) -> bytes:
    file = io.BytesIO()
    torch.save(t, file)
    return file.getvalue()


def lazy_parts(result: Any) -> list[LazyFeatures]:
    parts = [result] if isinstance(result, Tensor) else list(result)
    assert parts
    return [part for part in parts if type(part) is LazyFeatures and not part.memory]


def scenes() -> Iterator[tuple[Tensor, LazyFeatures]]:
    """The last level of each scene, or the features."""
    for levels, dtype, stored, form in SCENES:
        scene = LazyScene.of(levels, dtype, stored)
        yield form(scene.plain[levels]), form(scene.lazy[levels])


@pytest.mark.parametrize("expression", expressions(STAY_LAZY))
@torch.no_grad()
def test_operation_before_a_merge_stays_lazy_with_the_values_of_plain_tensors(expression: str) -> None:
    for plain, lazy in scenes():
        expected, found = evaluated(expression, plain), evaluated(expression, lazy)
        assert len(lazy_parts(found)) == (1 if isinstance(expected, Tensor) else len(expected))
        assert same(expected, found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("expression", [*expressions(TAKE_MEMORY), *expressions(STAY_LAZY)])
@torch.no_grad()
def test_operation_gives_the_result_or_the_error_of_plain_tensors(expression: str) -> None:
    for plain, lazy in scenes():
        expected = evaluated(expression, plain)
        assert same(expected, evaluated(expression, lazy))
        assert same(plain, lazy)  # written in place, or not at all
        assert lazy.memory
        assert same(evaluated(expression, plain), evaluated(expression, lazy))


@pytest.mark.parametrize("expression", expressions(METADATA))
def test_metadata_is_that_of_plain_tensors_and_copies_no_rows(expression: str) -> None:
    for plain, lazy in scenes():
        assert same(evaluated(expression, plain), evaluated(expression, lazy))
        assert not lazy.memory


@torch.no_grad()
def test_random_compositions_and_a_merge_give_the_values_of_plain_tensors() -> None:
    placed, operations = [], [*expressions(STAY_LAZY), "t.mul_(2)"]
    for seed in range(300):
        chooser = random.Random(seed)
        scene = LazyScene.of(*chooser.choice(SCENES)[:3])
        scene.begin_call()
        plane = chooser.choice((0, -1))
        plain, lazy = scene.plain[plane], scene.lazy[plane]
        for _ in range(chooser.randrange(8)):
            expression = chooser.choice(operations)
            expected, found = evaluated(expression, plain), evaluated(expression, lazy)
            if not isinstance(expected, Tensor):
                assert same(expected, found)
            elif expected.numel() < 1000:
                plain, lazy = expected, found
                assert plain.shape == lazy.shape
        number = plain.numel() // HIDDEN
        tokens = number + chooser.randrange(4)
        mask = torch.zeros(1, tokens, 1, dtype=torch.bool)
        mask[0, chooser.sample(range(tokens), number)] = True
        text = torch.full((1, tokens, HIDDEN), float("nan"), dtype=plain.dtype)
        expected = text.masked_scatter(mask, plain)
        merged = text.masked_scatter(mask, lazy)
        placed.append(merged is text)
        assert same(merged.nan_to_num(7), expected.nan_to_num(7))
        assert same(plain, lazy)
    assert len(set(placed)) == 2
