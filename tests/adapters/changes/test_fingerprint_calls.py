"""`attach(model, fingerprint_calls=N)`: by the N-th call after an unseen write, logits are the stock ones."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from attached import QWEN3, features, image_rows, logits, pair, stock_rows
from byte_scene import UNSEEN_WRITES, own_bytes, scatter_in_place, storage_bytes
from caches import make_cache
from tiny_models import FAMILIES, one_at_a_time
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from vitcache.adapters.changes.outer_modules import outer_weights
from vitcache.adapters.transformers import attach

pytestmark = pytest.mark.transformers

FOUND = {"the fingerprint of the weights differs": 1}
WEIGHT = "visual.blocks.0.mlp.linear_fc1.weight"


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def weight_of(model: Any) -> Tensor:
    return dict(outer_weights(model.model))[WEIGHT]


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("write", [*UNSEEN_WRITES, scatter_in_place])
def test_logits_after_an_unseen_write_are_stock_by_the_nth_call(
    write: Callable[[Tensor], None], caplog: pytest.LogCaptureFixture
) -> None:
    stock, model, attachment, tower = pair(QWEN3, fingerprint_calls=4)
    prompt = QWEN3.prompt(stock, 0)
    for _ in range(9):
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
    assert tower.take() == 1
    old = logits(stock, prompt)
    for side in (stock, model):
        with torch.no_grad():
            write(weight_of(side))
    new = logits(stock, prompt)
    with caplog.at_level(logging.WARNING):
        served = [logits(model, prompt) for _ in range(8)]
    assert torch.equal(served[0], old) or torch.equal(served[0], new)
    assert all(torch.equal(output, new) for output in served[3:])
    assert attachment.stats().changes == FOUND
    assert tower.take() == 1
    [record] = caplog.records
    assert WEIGHT in record.message
    assert "attachment.invalidate()" in record.message
    assert not torch.equal(old, new) or write.__name__ in ("write_numpy", "write_pointer")


def test_each_weight_with_one_changed_byte_is_found_by_the_nth_call() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model, fingerprint_calls=2)
    image_rows(model, call)
    for number, (_, weight) in enumerate(outer_weights(model.model), 1):
        place = own_bytes(weight).nonzero()[0][-1]
        storage_bytes(weight)[place] ^= 1
        image_rows(model, call)
        assert torch.equal(image_rows(model, call), stock_rows(model, call))
        assert attachment.stats().changes == dict.fromkeys(FOUND, number)
    assert attachment.stats().encoded == number + 1


def test_unseen_write_during_an_encode_is_found() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    writes = [0.5]

    def write_once(*_: object) -> None:
        if writes:
            weight_of(model).data.mul_(writes.pop())  # the block has used this weight

    model.model.visual.blocks[0].register_forward_hook(write_once)
    attachment = attach(model, fingerprint_calls=3)
    old = image_rows(model, call)
    for _ in range(3):
        rows = image_rows(model, call)
    assert torch.equal(rows, stock_rows(model, call))
    assert not torch.equal(rows, old)
    assert attachment.stats().changes == FOUND


@pytest.mark.parametrize("option", [0, 3])
def test_noticed_and_told_changes_are_no_findings(option: int, caplog: pytest.LogCaptureFixture) -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model, fingerprint_calls=option)
    image_rows(model, call)
    with torch.no_grad():
        weight_of(model).mul_(0.5)
    for _ in range(4):
        assert torch.equal(image_rows(model, call), stock_rows(model, call))
    weight_of(model).data.mul_(0.5)
    attachment.invalidate()
    for _ in range(7):
        assert torch.equal(image_rows(model, call), stock_rows(model, call))
    assert sum(attachment.stats().changes.values()) == 2
    assert not FOUND.keys() & attachment.stats().changes.keys()
    assert attachment.stats().encoded == 3
    assert caplog.records == []


def test_unseen_write_without_the_option_is_not_found() -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model)
    first = image_rows(model, call)
    weight_of(model).data.mul_(0.5)
    for _ in range(4):
        assert torch.equal(image_rows(model, call), first)
    assert attachment.stats().changes == {}


def test_change_between_attach_and_the_first_call_is_found() -> None:
    cache = make_cache(width=QWEN3.row_width)
    first, model = QWEN3.model(), QWEN3.model()
    attach(first, cache, namespace="seed 0")
    attach(model, cache, namespace="seed 0", fingerprint_calls=2)
    image_rows(first, QWEN3.call(0))
    weight_of(model).data.mul_(0.5)
    image_rows(model, QWEN3.call(1))
    assert torch.equal(image_rows(model, QWEN3.call(0)), stock_rows(model, QWEN3.call(0)))


def test_second_finding_is_counted_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, call = QWEN3.model(), QWEN3.call(0)
    attachment = attach(model, fingerprint_calls=1)
    for _ in range(3):
        weight_of(model).data.mul_(0.5)
        assert torch.equal(image_rows(model, call), stock_rows(model, call))
    assert attachment.stats().changes == dict.fromkeys(FOUND, 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.usefixtures("group")
def test_unseen_write_to_a_sharded_weight_is_found() -> None:
    family = FAMILIES["internvl"]
    model = family.model()
    stock = one_at_a_time(family, family.model())
    prompt = family.prompt(stock, 0)
    for block in model.model.vision_tower.encoder.layer:
        fully_shard(block)
    fully_shard(model)  # after a forward, only the weights of its children are sharded again
    logits(model, prompt)
    attachment = attach(model, fingerprint_calls=2)
    for _ in range(3):
        assert torch.equal(logits(model, prompt), logits(stock, prompt))
    name = next(name for name, weight in outer_weights(model.model) if hasattr(weight, "to_local"))
    with torch.no_grad():
        dict(outer_weights(model.model))[name].to_local().data.mul_(0.5)
        dict(outer_weights(stock.model))[name].data.mul_(0.5)
    logits(model, prompt)
    assert torch.equal(logits(model, prompt), logits(stock, prompt))
    assert attachment.stats().changes == FOUND
    assert attachment.stats().encoded == 2


def test_unseen_write_to_an_offloaded_weight_is_found() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, stock, call = QWEN3.model(), QWEN3.model(), QWEN3.call(0)
    accelerate.cpu_offload(model.model.visual, execution_device="cpu")
    attachment = attach(model, fingerprint_calls=2)
    for _ in range(3):
        assert torch.equal(image_rows(model, call), stock_rows(stock, call))
    block = model.model.visual.blocks[0].mlp.linear_fc1
    block._hf_hook.weights_map["weight"].data.mul_(0.5)
    weight_of(stock).data.mul_(0.5)
    image_rows(model, call)
    assert torch.equal(image_rows(model, call), stock_rows(stock, call))
    assert attachment.stats().changes == FOUND
    assert attachment.stats().encoded == 2


def test_calls_of_several_threads_end_with_the_stock_rows() -> None:
    model, calls = QWEN3.model(), [QWEN3.call(seed) for seed in range(3)]
    attachment = attach(model, fingerprint_calls=5)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(4):
                for call in calls:
                    features(model, call)
        except BaseException as error:
            errors.append(error)

    for _ in range(3):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        weight_of(model).data.mul_(0.5)
        for thread in threads:
            thread.join()
        for _ in range(5):
            features(model, calls[0])
        for call in calls:
            assert torch.equal(image_rows(model, call), stock_rows(model, call))
    assert errors == []
    assert attachment.stats().changes.keys() == FOUND.keys()


@pytest.mark.parametrize(
    ("calls", "error"), [(-1, ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError)]
)
def test_attach_wrong_fingerprint_calls_raises_with_its_name_and_value(
    calls: Any, error: type[Exception]
) -> None:
    model = QWEN3.model()
    with pytest.raises(error, match=f"fingerprint_calls .* {calls}"):
        attach(model, fingerprint_calls=calls)
    attach(model).detach()


@pytest.mark.parametrize("option", [0, 2])
def test_detached_attachment_with_a_fingerprint_is_in_no_circle_of_references(option: int) -> None:
    model = QWEN3.model()
    attachment = attach(model, fingerprint_calls=option, placement="off")
    image_rows(model, QWEN3.call(0))
    attachment.detach()
    cache = weakref.ref(attachment.cache)
    gc.disable()  # only a count of references may free it
    try:
        del attachment
        assert cache() is None
    finally:
        gc.enable()
