"""Steps of SGLang's plug-in on a GPU, against a plain loop over tokens. Needs no SGLang."""

from __future__ import annotations

import pytest
import torch
from machine import Machine
from sglang_fakes.model import Model
from sglang_fakes.requests import DataItem, Inputs, image
from sglang_fakes.scene import Scene, Window, token_ids
from torch import Tensor

PATCH = 3


@pytest.fixture(params=[0, 2], ids=["plain", "deepstack"])
def scene(gpu: Machine, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Scene:
    device = "cpu" if gpu.dry else "cuda"
    return Scene(monkeypatch, Model(request.param), device, device_bytes="16MiB", host_bytes="16MiB")


def pictures(gpu: Machine, num_images: int) -> list[DataItem]:
    """Images in host memory, one behind the other. Sums of small whole numbers are exact on each device."""
    num_rows, items = gpu.size(200, 5), []
    for number in range(num_images):
        generator = torch.Generator().manual_seed(number)
        values = torch.randint(-50, 50, (num_rows, PATCH), generator=generator).float()
        first = 2 + number * (num_rows + 3)
        items.append(image(number, (first, first + num_rows - 1), feature=values))
    return items


def end_of(items: list[DataItem]) -> int:
    return items[-1].offsets[-1][1] + 3


def test_chunks_of_a_request_have_the_rows_of_its_images(gpu: Machine, scene: Scene) -> None:
    """Features cross the bus through the ring; SGLang's items keep theirs in host memory."""
    items = pictures(gpu, 6)
    features = [item.feature for item in items]
    inputs, size = Inputs(items), end_of(items) // 4 + 1
    for start in range(0, end_of(items), size):
        scene.step(Window(inputs, start, min(size, end_of(items) - start)), padding=start % 3)
    assert scene.model.num_encoded == len(items)
    assert all(item.feature is feature for item, feature in zip(items, features, strict=True))
    seen = [item.feature.device.type for call in scene.model.calls for item in call]
    assert set(seen) == {scene.device.type}


def test_next_turn_encodes_the_new_image_alone(gpu: Machine, scene: Scene) -> None:
    for num_images in range(1, 5):
        items = pictures(gpu, num_images)
        scene.step(Window(None, 0, 7), Window(Inputs(items), 0, end_of(items)))
        assert scene.model.num_encoded == num_images


def test_hits_with_known_keys_do_not_wait_for_the_device(gpu: Machine, scene: Scene) -> None:
    items = pictures(gpu, 8)
    window = Window(Inputs(items), 0, end_of(items))
    scene.step(window)
    ids = token_ids((window,)).to(scene.device)
    wanted, _ = scene.truth((window,), (), (), 0, {})
    for milliseconds in (0, 100):  # the first step loads the kernels of hits
        with gpu.no_host_sync():
            gpu.slow(milliseconds)
            found: tuple[Tensor, dict[str, Tensor]] = scene.embed(window, ids=ids.clone())
            assert milliseconds == 0 or gpu.is_behind(gpu.current_stream())
        gpu.synchronize()
        assert torch.equal(found[0].cpu(), wanted)
    assert scene.model.num_encoded == len(items)


def test_step_on_another_stream_reads_rows_of_the_first_one(gpu: Machine, scene: Scene) -> None:
    items = pictures(gpu, 3)
    window = Window(Inputs(items), 0, end_of(items))
    gpu.slow(50)
    first = scene.embed(window, ids=token_ids((window,)).to(scene.device))
    with gpu.stream():
        second = scene.embed(window, ids=token_ids((window,)).to(scene.device))
    gpu.synchronize()
    wanted, _ = scene.truth((window,), (), (), 0, {})
    assert torch.equal(first[0].cpu(), wanted)
    assert torch.equal(second[0].cpu(), wanted)
    assert scene.model.num_encoded == len(items)
