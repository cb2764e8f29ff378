"""A stand-in for a vision-language model, whose vision tower has blocks of the shape of transformers'."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

TENSORS_OF_A_BLOCK = 12
ADAPTERS = ("a", "b")


class Config(SimpleNamespace):
    """A configuration: `attach` reads the values of objects with the method `to_dict` of transformers."""

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name."""
        return dict(vars(self))


class Attention(nn.Module):
    """The layers and the settings of the attention of a block."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads, self.head_dim, self.num_key_value_groups = 2, width // 2, 1
        self.scaling, self.attention_dropout, self.is_causal = self.head_dim**-0.5, 0.0, False
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)


class Perceptron(nn.Module):
    """The two linear layers of a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden_size = width
        self.linear_fc1, self.linear_fc2 = nn.Linear(width, width), nn.Linear(width, width)
        self.act_fn = nn.GELU()


class Block(nn.Module):
    """One block: 12 tensors in 10 modules."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(config, width)
        self.mlp = Perceptron(width)


class LoraLinear(nn.Module):
    """A linear layer with two LoRA adapters, in the attributes of PEFT's layer."""

    _disable_adapters = False

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = layer
        self.r, self.lora_alpha = dict.fromkeys(ADAPTERS, rank), dict.fromkeys(ADAPTERS, rank)
        self.scaling = dict.fromkeys(ADAPTERS, 1.0)
        self.merged_adapters: list[str] = []
        self._active_adapter = [ADAPTERS[0]]
        self.lora_dropout = nn.ModuleDict({name: nn.Identity() for name in ADAPTERS})
        self.lora_A = nn.ModuleDict(
            {name: nn.Linear(layer.in_features, rank, bias=False) for name in ADAPTERS}
        )
        self.lora_B = nn.ModuleDict(
            {name: nn.Linear(rank, layer.out_features, bias=False) for name in ADAPTERS}
        )


class Tower(nn.Module):
    """A layer for patches, blocks, and further norms up to the number of weights."""

    def __init__(self, config: Any, tensors: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Linear(width, width)
        count, rest = divmod(tensors - 2, TENSORS_OF_A_BLOCK)
        self.blocks = nn.ModuleList(Block(config, width) for _ in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(rest // 2))


class ChangingModel(nn.Module):
    """A model with `tensors` weights outside of its language model, besides those of adapters.

    Parameters
    ----------
    tensors
        Number of weights; even, and at least 14.
    width
        Elements of a row of the tower.
    has_adapters
        Whether each linear layer has two LoRA adapters.
    """

    def __init__(self, tensors: int, width: int, *, has_adapters: bool = False) -> None:
        super().__init__()
        self.config = Config(_attn_implementation="sdpa", hidden_size=width, return_dict=True)
        self.language_model = nn.Embedding(2, 2)
        self.visual = Tower(self.config, tensors, width)
        self._lora: list[LoraLinear] = []
        if has_adapters:
            for part in list(self.visual.blocks.modules()):
                for name, layer in list(part.named_children()):
                    if isinstance(layer, nn.Linear):
                        self._lora.append(LoraLinear(layer, rank=1))
                        setattr(part, name, self._lora[-1])
        self.eval()

    @property
    def weight(self) -> Tensor:
        """The weight of the last block that a step would write."""
        block: Any = self.visual.blocks[-1]
        weight: Tensor = block.norm2.weight
        return weight

    def write(self) -> None:
        """Write to one weight in place."""
        with torch.no_grad():
            self.weight.add_(1)

    def switch_adapters(self) -> None:
        """Make the other adapter active in each layer, as PEFT's `set_adapter` does."""
        [active] = self._lora[0]._active_adapter
        other = ADAPTERS[1 - ADAPTERS.index(active)]
        for layer in self._lora:
            layer._active_adapter = [other]


class VersionsInPython:
    """The check that a careful user writes: the identity, version and address of each weight."""

    def __init__(self, model: ChangingModel) -> None:
        self._tower = model.visual
        self._seen = self._look()

    def is_current(self) -> bool:
        """Whether each weight of the tower is the one at first, and was not written in place."""
        return self._look() == self._seen

    def _look(self) -> list[tuple[int, int, int]]:
        weights = chain(self._tower.parameters(), self._tower.buffers())
        return [(id(weight), weight._version, weight.data_ptr()) for weight in weights]
