"""InternVL in its first form: vLLM has the processor, and the folder of the model has the configuration."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from engine_runner.tiny_models import internvl
from engine_runner.tiny_models.family import HIDDEN, Family
from engine_runner.tiny_models.folder import change_json

CODE = "configuration_internvl_chat"
# The module that vLLM imports from the folder of the model.
CONFIGURATION = """\
from transformers import PretrainedConfig, Qwen2Config


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"
    sub_configs = {"vision_config": PretrainedConfig, "llm_config": Qwen2Config}

    def __init__(self, vision_config=None, llm_config=None, **values):
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        self.llm_config = Qwen2Config(**(llm_config or {}))
        super().__init__(**values)
"""


def config(family: Family) -> dict[str, Any]:
    vision = {
        **internvl.VISION,
        "image_size": internvl.TILE,
        "patch_size": 14,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "initializer_factor": 0.1,
    }
    return {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoConfig": f"{CODE}.InternVLChatConfig"},
        "vision_config": vision,
        "llm_config": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **family.text_config()},
        "force_image_size": internvl.TILE,
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "ps_version": "v2",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": internvl.MOST_TILES,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def make_weights(values: dict[str, Any]) -> Any:
    """A module whose parameters have the names of the published weights."""
    from torch import nn
    from transformers import Qwen2Config, Qwen2ForCausalLM

    columns, tiled = internvl.VISION["hidden_size"], 4 * internvl.VISION["hidden_size"]
    layers = nn.ModuleList(vision_layer() for _ in range(internvl.VISION["num_hidden_layers"]))
    embeddings = nn.ModuleDict({"patch_embedding": nn.Conv2d(3, columns, 14, 14)})
    add_constant(embeddings, "class_embedding", 1, 1, columns)
    add_constant(embeddings, "position_embedding", 1, 1 + (internvl.TILE // 14) ** 2, columns)
    model = nn.Module()
    model.vision_model = nn.ModuleDict(
        {"embeddings": embeddings, "encoder": nn.ModuleDict({"layers": layers})}
    )
    model.mlp1 = nn.Sequential(
        nn.LayerNorm(tiled), nn.Linear(tiled, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN)
    )
    model.language_model = Qwen2ForCausalLM(Qwen2Config(**values["llm_config"]))
    model.save_pretrained = partial(save, model, values)
    return model


def vision_layer() -> Any:
    from torch import nn

    columns, wide = internvl.VISION["hidden_size"], internvl.VISION["intermediate_size"]
    layer = nn.ModuleDict(
        {
            "attn": nn.ModuleDict(
                {"qkv": nn.Linear(columns, 3 * columns), "proj": nn.Linear(columns, columns)}
            ),
            "mlp": nn.ModuleDict({"fc1": nn.Linear(columns, wide), "fc2": nn.Linear(wide, columns)}),
            "norm1": nn.LayerNorm(columns),
            "norm2": nn.LayerNorm(columns),
        }
    )
    add_constant(layer, "ls1", columns)
    add_constant(layer, "ls2", columns)
    return layer


def add_constant(module: Any, name: str, *shape: int) -> None:
    import torch

    module.register_parameter(name, torch.nn.Parameter(torch.full(shape, 0.1)))


def save(model: Any, values: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    change_json(folder / "config.json", **values)
    (folder / f"{CODE}.py").write_text(CONFIGURATION)


INTERNVL_CHAT = Family(
    "internvl_chat",
    "internvl",
    "InternVLChatModel",
    placeholder="<image>",
    special=("<img>", "</img>", "<IMG_CONTEXT>"),
    config=config,
    processors=lambda folder: None,
    weights=make_weights,
    seed=2,
    options={"trust_remote_code": True},
)
