"""PEFT: adapters of the tower that are switched, disabled, merged and scaled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from model_changes.change import NAMED, SEVERAL, change
from model_changes.random_weights import fill
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import ADAPTERS, REPLACED, WRITTEN

SWITCHED = "PEFT: the active adapters of the tower"
SCALED = "PEFT: scaling"
MERGED = "PEFT: merging"


def lora(scene: Scene, *names: str, **options: Any) -> Any:
    """Give the tower LoRA adapters, the first one is active."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=scene.lora_targets, r=2, init_lora_weights=False, **options)
    first, *further = names or ("a", "b")
    model = get_peft_model(scene.model, config, first)
    for name in further:
        model.add_adapter(name, config)
    return model.eval()


def layers(scene: Scene) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in scene.tower.modules() if isinstance(module, LoraLayer)]


@change(SWITCHED, "`set_adapter`", ADAPTERS, NAMED, families=SEVERAL)
def set_adapter(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    model.set_adapter("b")
    yield
    model.set_adapter("a")
    yield


@change(SWITCHED, "`with disable_adapter():`", ADAPTERS, NAMED, families=SEVERAL)
def disabled_in_a_block(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    with model.disable_adapter():
        yield
    yield


@change(SWITCHED, "`disable_adapter_layers`, `enable_adapter_layers`", ADAPTERS, NAMED, families=SEVERAL)
def disabled(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    model.base_model.disable_adapter_layers()
    yield
    model.base_model.enable_adapter_layers()
    yield


@change(SWITCHED, "several active adapters", ADAPTERS, NAMED)
def both(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    model.base_model.set_adapter(["a", "b"])
    yield
    model.base_model.set_adapter("a")
    yield


@change(SWITCHED, "`set_adapter` of one layer", ADAPTERS, NAMED)
def one_layer(scene: Scene) -> Iterator[None]:
    lora(scene)
    yield
    layers(scene)[0].set_adapter("b")
    yield
    layers(scene)[0].set_adapter("a")
    yield


@change(SCALED, "`set_scale`", ADAPTERS, NAMED)
def set_scale(scene: Scene) -> Iterator[None]:
    lora(scene)
    yield
    for factor in (3.0, 1.0):
        for layer in layers(scene):
            layer.set_scale("a", factor)
        yield


@change(SCALED, "`scale_layer`, `unscale_layer`", ADAPTERS, NAMED)
def scale_layer(scene: Scene) -> Iterator[None]:
    lora(scene)
    yield
    for layer in layers(scene):
        layer.scale_layer(2.0)
    yield
    for layer in layers(scene):
        layer.unscale_layer(2.0)
    yield


@change(SCALED, "`scale_layer` after `prepare_model_for_compiled_hotswap`", WRITTEN)
def tensor_scale(scene: Scene) -> Iterator[None]:
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    prepare_model_for_compiled_hotswap(lora(scene), target_rank=4)
    yield
    for layer in layers(scene):
        layer.scale_layer(2.0)
    yield


@change(SCALED, "`peft.helpers.rescale_adapter_scale`", ADAPTERS, NAMED)
def rescaled(scene: Scene) -> Iterator[None]:
    from peft.helpers import rescale_adapter_scale

    model = lora(scene)
    yield
    with rescale_adapter_scale(model, 0.5):
        yield
    yield


@change(MERGED, "`merge_adapter`, `unmerge_adapter`", WRITTEN, families=SEVERAL)
def merged(scene: Scene) -> Iterator[None]:
    """Merged weights round otherwise, and the language model is not changed."""
    model = lora(scene)
    yield
    model.merge_adapter()
    yield
    model.set_adapter("b")
    model.unmerge_adapter()
    yield


@change(MERGED, "`merge_adapter` of an adapter that is not active", WRITTEN)
def merged_other(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    model.merge_adapter(["b"])
    yield
    model.unmerge_adapter()
    fill([layers(scene)[0].lora_B["a"].weight])
    yield


@change(MERGED, "`merge_and_unload`", REPLACED)
def unloaded(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    scene.kept.append(model.merge_and_unload())
    yield


@change(MERGED, "`unload`", REPLACED)
def without(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    scene.kept.append(model.unload())
    yield


@change(MERGED, "`add_weighted_adapter`", REPLACED)
def weighted(scene: Scene) -> Iterator[None]:
    model = lora(scene)
    yield
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c", combination_type="linear")
    model.set_adapter("c")
    yield


@change(SWITCHED, "`set_adapter` of a `PeftMixedModel`: LoRA and LoHa", ADAPTERS, NAMED)
def mixed_model(scene: Scene) -> Iterator[None]:
    from peft import LoHaConfig, LoraConfig, get_peft_model

    targets = scene.lora_targets
    config = LoraConfig(target_modules=targets, r=2, init_lora_weights=False)
    model = get_peft_model(scene.model, config, "a", mixed=True)
    model.add_adapter("b", LoHaConfig(target_modules=targets, r=2, init_weights=False))
    model.set_adapter(["a", "b"])
    model.eval()
    yield
    model.set_adapter("b")
    yield
    model.set_adapter(["a", "b"])
    yield
