"""An update of the weights, or a flush, by another thread while the encoder runs."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
from sglang_fakes.model import Model
from sglang_fakes.requests import Inputs, image
from sglang_fakes.scene import Scene, Window, token_ids

SIZES = {"device": {}, "host": {"device_bytes": 64, "host_bytes": 4096}, "kept": {"device_bytes": 16}}


@pytest.mark.parametrize("call", ["advance_epoch", "clear"])
@pytest.mark.parametrize("options", SIZES.values(), ids=SIZES)
def test_rows_of_the_weights_before_the_call_are_not_read_by_a_later_step(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], call: str
) -> None:
    """Neither by the next chunk of the request, whose rows a small tier rejects."""
    old = [True]

    def form(rows: list[Any]) -> list[Any]:
        if not old:
            return rows
        thread = Thread(target=getattr(scene.service, call))
        thread.start()
        thread.join()
        return [part * 0 + 1 for part in rows if old.pop()]

    scene = Scene(monkeypatch, Model(form=form), **options)
    inputs = Inputs([image(1, (0, 9))])
    first = scene.embed(Window(inputs, 0, 4), ids=token_ids((Window(inputs, 0, 4),)))
    assert first is not None
    assert (first[0] == 1).all()
    scene.step(Window(inputs, 4, 6))
    scene.step(Window(inputs, 0, 10))
