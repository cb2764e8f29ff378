"""Adapters and settings that are switched: earlier entries are found again only if their rows are right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread

import pytest
import torch
from caches import make_cache

pytest.importorskip("transformers")
pytest.importorskip("peft")

from attached import plain_kernels  # noqa: F401
from model_changes import AT_ONCE, Change, Scene
from model_changes.change import Steps
from model_changes.checks import attached_steps, stock_steps
from model_changes.hand_written import add_lora
from model_changes.peft_adapters import layers, lora
from model_changes.random_weights import fill, set_gradients
from tiny_models import FAMILIES, one_at_a_time

from vitcache.adapters.changes.model_changes import ADAPTERS, SETTINGS
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]
FAMILY = FAMILIES["internvl"]


def written_between(scene: Scene) -> Iterator[None]:
    """A weight is written while b is active, so the rows of a are not right either."""
    model = lora(scene)
    yield
    model.set_adapter("b")
    yield
    fill([scene.biased.weight])
    yield
    model.set_adapter("a")
    yield


def loaded_between(scene: Scene) -> Iterator[None]:
    """The adapter that is not active gets other weights."""
    model = lora(scene)
    yield
    model.set_adapter("b")
    yield
    for layer in layers(scene):
        fill([layer.lora_B["a"].weight])
    yield
    model.set_adapter("a")
    yield


def trained_between(scene: Scene) -> Iterator[None]:
    """A fused optimizer holds only the adapter that is not active."""
    model = lora(scene)
    weights = [weight for layer in layers(scene) for weight in layer.lora_B["b"].parameters()]
    optimizer = torch.optim.AdamW(weights, lr=0.5, fused=True)
    yield
    model.set_adapter("b")
    yield
    model.set_adapter("a")
    set_gradients(weights)
    optimizer.step()
    yield
    model.set_adapter("b")
    yield


def hooked_between(scene: Scene) -> Iterator[None]:
    """A hook is registered while b is active."""
    model = lora(scene)
    yield
    model.set_adapter("b")
    yield
    scene.linear.register_forward_hook(lambda module, args, output: output * 2)
    yield
    model.set_adapter("a")
    yield


def merged_between(scene: Scene) -> Iterator[None]:
    """Adapter a is merged into the weights, and adapter b is active beside it."""
    model = lora(scene)
    yield
    model.set_adapter("b")
    yield
    model.merge_adapter(["a"])
    yield
    model.unmerge_adapter()
    model.set_adapter("a")
    yield


def scaled_between(scene: Scene) -> Iterator[None]:
    """Two settings change one after another, so four entries exist."""
    first = add_lora(scene)
    yield
    first.scale = 2.0
    yield
    first.disabled = True
    yield
    first.disabled, first.scale = False, 3.0
    yield


@pytest.mark.parametrize(
    "steps",
    [written_between, loaded_between, trained_between, hooked_between, merged_between, scaled_between],
    ids=lambda steps: steps.__name__,
)
def test_switch_after_another_change_uses_no_wrong_rows(steps: Steps) -> None:
    change = Change("", steps.__name__, AT_ONCE, "", steps, ("internvl",), False, ())
    stock, attached = stock_steps(change, "internvl"), attached_steps(change, "internvl")
    for number, (expected, step) in enumerate(zip(stock, attached, strict=True)):
        assert all(torch.equal(logits, expected.logits) for logits in step.logits), f"step {number}"


def switch_adapter(scene: Scene) -> Callable[[int], None]:
    model = lora(scene)
    return lambda number: model.set_adapter("ab"[number % 2])


def switch_scale(scene: Scene) -> Callable[[int], None]:
    own = add_lora(scene)
    return lambda number: setattr(own, "scale", float(number % 2))


@pytest.mark.parametrize(
    ("make", "kind"), [(switch_adapter, ADAPTERS), (switch_scale, SETTINGS)], ids=["PEFT", "own"]
)
def test_two_adapters_in_turn_encode_an_image_once_each(
    make: Callable[[Scene], Callable[[int], None]], kind: str
) -> None:
    scenes = [Scene(FAMILY, one_at_a_time(FAMILY, FAMILY.model())), Scene(FAMILY, FAMILY.model())]
    switches = []
    for scene in scenes:
        torch.manual_seed(0)
        switches.append(make(scene))
        switches[-1](0)
    with attach(scenes[1].model) as attachment:
        seen = []
        for number in range(8):
            for switch in switches:
                switch(number)
            stock, attached = (scene.logits() for scene in scenes)
            assert torch.equal(stock, attached)
            seen.append(stock)
        assert not torch.equal(seen[0], seen[1])
        stats = attachment.stats()
    assert (stats.encoded, stats.hits, len(attachment.cache)) == (2, 6, 2)
    assert stats.changes == {kind: 7}


def attach_two(active: str, namespace: str) -> tuple[list[Scene], list[int]]:
    """Attach two equal models with adapters a and b to one cache: `active[i]` is active in model i."""
    cache = make_cache(400, width=FAMILY.row_width)
    scenes, encoded = [], []
    for name in active:
        scene = Scene(FAMILY, FAMILY.model())
        torch.manual_seed(0)
        lora(scene).set_adapter(name)
        attachment = attach(scene.model, cache, namespace=namespace)
        scene.prompt = FAMILY.prompt(scene.model, 0)
        scene.kept.append(scene.logits())
        other = FAMILY.prompt(scene.model, 1)
        with torch.no_grad():
            scene.kept.append(scene.model(**other).logits)  # the first item is always encoded
        scenes.append(scene)
        encoded.append(attachment.stats().encoded)
        attachment.detach()
    return scenes, encoded


def test_attachments_with_equal_names_and_other_active_adapters_share_no_rows() -> None:
    scenes, encoded = attach_two("ab", "weights of seed 0")
    assert encoded == [2, 2]
    assert not torch.equal(scenes[0].kept[0], scenes[1].kept[0])
    for scene in scenes:
        assert torch.equal(scene.kept[0], scene.logits())  # the stock model: one image is one call


def test_attachments_with_equal_names_and_the_same_active_adapter_share_rows() -> None:
    scenes, encoded = attach_two("aa", "weights of seed 0")
    assert encoded == [2, 1]
    assert torch.equal(scenes[0].kept[1], scenes[1].kept[1])


def test_a_hundred_settings_in_turn_encode_an_image_once_each() -> None:
    scene = Scene(FAMILY, FAMILY.model())
    own = add_lora(scene)
    with attach(scene.model) as attachment:
        for number in range(200):
            own.scale = float(number % 100)
            scene.logits()
        stats = attachment.stats()
    assert (stats.encoded, stats.hits) == (100, 100)


def test_setting_that_changed_before_the_first_call_shares_no_rows() -> None:
    cache = make_cache(400, width=FAMILY.row_width)
    found = []
    for scale in (1.0, 3.0):
        scene = Scene(FAMILY, FAMILY.model())
        torch.manual_seed(0)
        own = add_lora(scene)
        with attach(scene.model, cache, namespace="weights of seed 0") as attachment:
            own.scale = scale
            for seed in (1, 0):  # the first item is always encoded
                scene.prompt = FAMILY.prompt(scene.model, seed)
                logits = scene.logits()
            found.append(attachment.stats().encoded)
        assert torch.equal(logits, scene.logits())
    assert found == [2, 2]


def test_adapter_that_a_thread_switches_during_an_encode_leaves_no_rows_in_the_cache() -> None:
    scene = Scene(FAMILY, FAMILY.model())
    model = lora(scene)
    with attach(scene.model):
        scene.logits()
        scene.prompt = FAMILY.prompt(scene.model, 1)
        begin = scene.block.register_forward_pre_hook(lambda module, args: switching())

        def switching() -> None:
            thread = Thread(target=model.set_adapter, args=("b",))
            thread.start()
            thread.join()

        scene.logits()  # with rows of b, or of both
        begin.remove()
        model.set_adapter("a")
        attached = scene.logits()
    assert torch.equal(attached, scene.logits())
