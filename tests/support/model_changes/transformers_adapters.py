"""transformers: the methods of a model that add and switch PEFT's adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from model_changes.change import NAMED, SEVERAL, change
from model_changes.scene import Scene
from vitcache.adapters.changes.model_changes import ADAPTERS, REPLACED

ROW = "transformers: the active adapters of the tower"
ADDED = "transformers: adapters are added, loaded or deleted"


def config(scene: Scene) -> Any:
    from peft import LoraConfig

    return LoraConfig(target_modules=scene.lora_targets, r=2, init_lora_weights=False)


def add_two(scene: Scene) -> Any:
    scene.model.add_adapter(config(scene), "a")
    scene.model.add_adapter(config(scene), "b")
    scene.model.set_adapter("a")
    return scene.model.eval()


@change(ROW, "`model.set_adapter`", ADAPTERS, NAMED, families=SEVERAL)
def set_adapter(scene: Scene) -> Iterator[None]:
    model = add_two(scene)
    yield
    model.set_adapter("b")
    yield
    model.set_adapter("a")
    yield


@change(ROW, "`model.disable_adapters`, `model.enable_adapters`", ADAPTERS, NAMED, families=SEVERAL)
def disabled(scene: Scene) -> Iterator[None]:
    model = add_two(scene)
    yield
    model.disable_adapters()
    yield
    model.enable_adapters()
    yield


@change(ADDED, "`model.add_adapter`", REPLACED)
def added(scene: Scene) -> Iterator[None]:
    yield
    scene.model.add_adapter(config(scene), "a")
    scene.model.eval()
    yield


@change(ADDED, "`model.load_adapter`", REPLACED)
def loaded(scene: Scene) -> Iterator[None]:
    import tempfile

    add_two(scene)
    yield
    with tempfile.TemporaryDirectory() as folder:
        scene.model.set_adapter("b")
        scene.model.save_pretrained(folder)
        scene.model.load_adapter(folder, "c")
    scene.model.set_adapter("c")
    yield


@change(ADDED, "`model.delete_adapter`", REPLACED)
def deleted(scene: Scene) -> Iterator[None]:
    add_two(scene)
    yield
    scene.model.delete_adapter("a")
    scene.model.set_adapter("b")
    yield
