"""PEFT: kinds of adapters, each switched from one adapter to another and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

from model_changes.change import NAMED, change
from model_changes.peft_adapters import SWITCHED
from model_changes.random_weights import fill
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import ADAPTERS

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("LoraConfig", {"r": 2, "use_dora": True, "init_lora_weights": False}),
    "rsLoRA": ("LoraConfig", {"r": 2, "use_rslora": True, "init_lora_weights": False}),
    "IA3": ("IA3Config", {"feedforward_modules": [], "init_ia3_weights": False}),
    "LoHa": ("LoHaConfig", {"r": 2, "init_weights": False}),
    "LoKr": ("LoKrConfig", {"r": 2, "init_weights": False}),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 4, "init_weights": False}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4, "init_weights": False}),
    "HRA": ("HRAConfig", {"r": 2, "init_weights": False}),
    "VeRA": ("VeraConfig", {"r": 2, "init_weights": False, "projection_prng_key": 1}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 10, "init_weights": False}),
    "AdaLoRA": ("AdaLoraConfig", {"r": 2, "init_r": 2, "total_step": 10, "init_lora_weights": False}),
    "LNTuning": ("LNTuningConfig", {}),
    "`modules_to_save`": ("LoraConfig", {"r": 2, "init_lora_weights": False}),
}


def switched(name: str, cls: str, options: dict[str, Any]) -> Callable[[Scene], Iterator[None]]:
    def steps(scene: Scene) -> Iterator[None]:
        peft = pytest.importorskip("peft")
        chosen: dict[str, Any] = {"target_modules": scene.lora_targets}
        if name == "LNTuning":
            chosen = {"target_modules": r".*vision_tower.*layernorm_before"}
        if name == "`modules_to_save`":
            chosen["modules_to_save"] = ["multi_modal_projector"]
        config = getattr(peft, cls)(**chosen, **options)
        model = peft.get_peft_model(scene.model, config, "a").eval()
        if name == "AdaLoRA":
            config = getattr(peft, cls)(**chosen, **options, inference_mode=True)  # one is trainable at most
        model.add_adapter("b", config)
        named = [(each, weight) for each, weight in model.named_parameters() if ".b." in f"{each}."]
        fill(weight for _, weight in named if isinstance(weight, nn.Parameter))
        model.set_adapter("a")
        model.eval()
        yield
        model.set_adapter("b")
        yield
        model.set_adapter("a")
        yield

    return steps


for _name, (_cls, _options) in KINDS.items():
    change(SWITCHED, _name, ADAPTERS, NAMED)(switched(_name, _cls, _options))
