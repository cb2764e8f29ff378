"""After an update of the weights, or a flush, no row of the old weights is served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import images
from sglang_scene.updates import REQUESTS, Engine, one_rank


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    with one_rank():
        yield


@pytest.mark.parametrize("flushes", [True, False])
@pytest.mark.parametrize("ending", ["succeeds", "fails", "raises"])
@pytest.mark.parametrize("name", REQUESTS)
def test_rows_after_an_update_are_those_of_the_new_weights(name: str, ending: str, flushes: bool) -> None:
    with plugged(), torch.no_grad():
        engine = Engine(ending, flushes=flushes)
        assert engine.is_right()
        raises = pytest.raises(RuntimeError, match="half-way") if ending == "raises" else nullcontext()
        with raises:
            engine.update(name)
        assert engine.is_right()
        assert engine.tower.num_encodes == 6


def test_sglang_alone_serves_rows_of_the_old_weights_after_an_update() -> None:
    with stock(), torch.no_grad():
        engine = Engine()
        assert engine.is_right()
        engine.update("update_weights_from_disk")
        assert not engine.is_right()
        assert engine.tower.num_encodes == 3


@pytest.mark.parametrize("is_idle", [True, False])
def test_flush_removes_every_entry_if_sglang_flushes_too(is_idle: bool) -> None:
    with plugged(), torch.no_grad():
        engine = Engine(flushes=is_idle)
        assert engine.is_right()
        assert engine.flush() is is_idle
        assert engine.is_right()
        assert engine.tower.num_encodes == (6 if is_idle else 3)


def test_update_and_flush_before_the_first_step_do_nothing() -> None:
    with plugged(), torch.no_grad():
        engine = Engine()
        assert engine.update("end_weight_update").success
        assert engine.flush()
        assert engine.is_right()


def test_update_of_unfinished_requests_gives_later_chunks_the_new_rows() -> None:
    with plugged(), torch.no_grad():
        engine = Engine(flushes=False)
        first, second = images(1, rows=20).chunks(15, 20)
        assert engine.is_right(first)
        engine.update("update_weights_from_disk")
        assert engine.is_right(second)
