"""PEFT: adapters of the tower that are added, loaded, swapped or deleted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from model_changes.change import BY_CALL, SEVERAL, change
from model_changes.peft_adapters import layers, lora
from model_changes.random_weights import fill
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import REPLACED, WRITTEN

ROW = "PEFT: adapters are added, loaded or deleted"
SWAPPED = "PEFT: `hotswap_adapter`, which writes `.data`"


@change(ROW, "`get_peft_model` after `attach`", REPLACED, families=SEVERAL)
def late(scene: Scene) -> Iterator[None]:
    yield
    lora(scene)
    yield


@change(ROW, "`add_adapter` and `set_adapter`", REPLACED)
def added(scene: Scene) -> Iterator[None]:
    from peft import LoraConfig

    model = lora(scene, "a")
    yield
    config = LoraConfig(target_modules=scene.lora_targets, r=2, init_lora_weights=False)
    model.add_adapter("c", config)
    model.set_adapter("c")
    yield


@change(ROW, "`load_adapter` of a new name", REPLACED)
def loaded(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=["b"])
        model.load_adapter(f"{folder}/b", "c")
    for layer in layers(scene):
        fill([layer.lora_B["c"].weight])
    model.set_adapter("c")
    yield


@change(ROW, "`load_adapter` over an existing name", WRITTEN)
def loaded_over(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=["b"])
        model.load_adapter(f"{folder}/b", "a")
    model.set_adapter("a")
    yield


@change(ROW, "`set_peft_model_state_dict`", WRITTEN)
def state_dict(scene: Scene) -> Iterator[None]:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    model = lora(scene)
    yield
    state = get_peft_model_state_dict(model, adapter_name="a")
    set_peft_model_state_dict(model, {name: value * 2 for name, value in state.items()}, "a")
    yield


def hotswap(scene: Scene, rank: int, prepare: Callable[[Any], None] = lambda model: None) -> Iterator[None]:
    """Give the adapter "a" the weights of an adapter of another rank, which is saved in a folder."""
    from peft import LoraConfig
    from peft.utils import hotswap

    model = lora(scene)
    config = LoraConfig(
        target_modules=scene.lora_targets, r=rank, lora_alpha=4 * rank, init_lora_weights=False
    )  # with the scaling of "a"
    model.add_adapter("c", config)
    yield
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, selected_adapters=["c"])
        prepare(model)
        hotswap.hotswap_adapter(model, f"{folder}/c", "a")
    yield


@change(ROW, "`hotswap_adapter` of a larger rank", REPLACED)
def hotswapped_larger(scene: Scene) -> Iterator[None]:
    yield from hotswap(scene, 3)


@change(ROW, "`prepare_model_for_compiled_hotswap` and `hotswap_adapter`", REPLACED)
def hotswapped_compiled(scene: Scene) -> Iterator[None]:
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    yield from hotswap(scene, 2, lambda model: prepare_model_for_compiled_hotswap(model, target_rank=4))


@change(SWAPPED, "an equal rank", noticed=BY_CALL, in_bytes=True)
def hotswapped(scene: Scene) -> Iterator[None]:
    yield from hotswap(scene, 2)


@change(SWAPPED, "a smaller rank", noticed=BY_CALL, in_bytes=True)
def hotswapped_smaller(scene: Scene) -> Iterator[None]:
    yield from hotswap(scene, 1)


@change(ROW, "`delete_adapter` of the active adapter", REPLACED)
def deleted(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    model.delete_adapter("a")
    yield
