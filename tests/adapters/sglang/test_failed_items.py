"""`failed_items`: the message of the client, the line of the log, and the counts of an item without rows."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from sglang_fakes.model import Model
from sglang_fakes.requests import DataItem, Inputs, Modality, feature, image
from sglang_fakes.scene import Scene, Window

from vitcache.adapters.sglang import hooks
from vitcache.adapters.sglang.engine_modules import SCHEDULE_BATCH
from vitcache.adapters.sglang.failed_items import MOST_CHARACTERS, cause_text

Ended = tuple[Any, str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str | None]]:
    """Runs a step as a batch of the scheduler, and returns the message of the client of each request."""
    monkeypatch.setitem(
        sys.modules, SCHEDULE_BATCH, SimpleNamespace(FINISH_ABORT=lambda message, *_: message)
    )

    def step(scene: Scene, *windows: Window, **values: Any) -> list[str | None]:
        mark = {"discard_output_reason": None, "beam_group": None, "session": None}
        requests = [SimpleNamespace(multimodal_inputs=window.inputs, **mark) for window in windows]
        batch = SimpleNamespace(reqs=requests, is_dllm=lambda: False, decoding_reqs=None)
        scheduler = SimpleNamespace(chunked_req=None)
        hooks.around_run_batch(lambda *_: scene.step(*windows, **values), scheduler, batch)
        return [request.discard_output_reason for request in requests]

    return step


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def short(rows: list[Any]) -> list[Any]:
    """Rows without the first one of each item of 4 rows."""
    return [part[1:] if len(part) == 4 else part for part in rows]


def test_bad_item_ends_its_request_with_numbers_and_cause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run: Any
) -> None:
    scene = Scene(monkeypatch, Model(form=short))
    good, bad = image(1, (0, 2)), image(2, (4, 7), modality=Modality.VIDEO)
    windows = (Window(Inputs([good]), 0, 5), Window(None, 0, 2), Window(Inputs([None, good, bad]), 0, 9))
    found = run(scene, *windows, failed=[bad])
    assert found[:2] == [None, None]
    assert found[2].startswith("vitcache: item 1 (VIDEO) has no rows: expected 4 rows, got 3 (ValueError: ")
    assert [line.split(" has no rows")[0] for line in lines(caplog)] == ["vitcache: item 1 of request id-2"]
    assert lines(caplog)[0].endswith("; the request is ended")
    stats = scene.service.stats()
    assert (stats.errors, stats.ended, stats.caches[0].entries) == (1, 1, 1)


def test_several_bad_items_end_their_requests_with_the_first_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run: Any
) -> None:
    scene = Scene(monkeypatch, Model(form=short))
    first, second = image(1, (0, 3)), image(2, (4, 7))
    windows = (Window(Inputs([first, second]), 0, 9), Window(Inputs([second]), 0, 9))
    found = run(scene, *windows, failed=[first, second])
    assert [text.partition(" has")[0] for text in found] == ["vitcache: item 0 (IMAGE)"] * 2
    assert len(lines(caplog)) == 3
    stats = scene.service.stats()
    assert (stats.errors, stats.ended) == (3, 2)


def test_item_with_bad_offsets_ends_its_request_in_its_first_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, run: Any
) -> None:
    scene = Scene(monkeypatch)
    bad = DataItem(feature=feature(2, 3), offsets=[(3, 6)])
    inputs = Inputs([image(1, (2, 5)), bad])
    good = Window(Inputs([image(3, (0, 2))]), 0, 4)
    [message, none] = run(scene, Window(inputs, 0, 2), good, left_out=[bad])  # a chunk before both items
    assert none is None
    assert message.startswith("vitcache: item 1 (IMAGE) is left out, its offsets are [(3, 6)] (ValueError: ")
    assert [line.endswith("; the request is ended") for line in lines(caplog)] == [True]
    stats = scene.service.stats()
    assert (stats.errors, stats.ended) == (1, 1)


def test_step_outside_of_a_run_ends_no_request_and_the_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(monkeypatch, Model(form=short))
    bad = image(1, (0, 3))
    for _ in range(2):
        scene.step(Window(Inputs([bad]), 0, 6), failed=[bad])
    assert [line.endswith("; the request is not ended") for line in lines(caplog)] == [True, True]
    stats = scene.service.stats()
    assert (stats.errors, stats.ended) == (2, 0)


def test_requests_that_share_their_items_count_once_each(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    scene = Scene(monkeypatch, Model(form=short))
    bad = image(1, (0, 3))
    inputs = Inputs([bad])
    found = run(scene, Window(inputs, 0, 6), Window(inputs, 0, 6), failed=[bad])
    assert None not in found
    assert scene.service.stats().ended == 2


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError("damaged"), "OSError: damaged"),
        (ValueError("two\nlines\tand\x1b[31m \ud800"), "ValueError: two lines and [31m  "),
        (KeyError("äöü 图"), "KeyError: 'äöü 图'"),
        (Unreadable(), "Unreadable: "),
        (OSError(), "OSError: "),
    ],
)
def test_cause_is_one_line_that_every_process_can_read(error: Exception, text: str) -> None:
    assert cause_text(error) == text
    assert text.encode("utf-8")  # raises for a lone surrogate


@dataclass(frozen=True)
class Frozen(Exception):
    """Setting an attribute raises."""

    number: int


def chain(length: int) -> Exception:
    """An error that was raised for another one, and so on: as retries raise it."""
    error: Exception = OSError("first")
    for _ in range(length):
        try:
            raise OSError("again") from error
        except OSError as raised:
            error = raised
    return error


def circle() -> Exception:
    first, second = chain(1), chain(1)
    first.__cause__, second.__cause__ = second, first
    return first


@pytest.mark.parametrize(
    "make",
    [
        lambda: Frozen(1),
        lambda: chain(2 * sys.getrecursionlimit()),
        circle,
        Unreadable,
        MemoryError,
        StopIteration,
        lambda: ExceptionGroup("several", [chain(1), Frozen(2)]),
    ],
    ids=["frozen", "chain", "circle", "unreadable", "memory", "stop", "group"],
)
def test_error_of_any_form_ends_its_request_and_the_next_step_is_right(
    monkeypatch: pytest.MonkeyPatch, run: Any, make: Callable[[], Exception]
) -> None:
    scene, bad = Scene(monkeypatch), image(1, (0, 3))
    error = make()

    def fail(rows: Any) -> Any:
        raise error

    scene.model.form = fail
    [message] = run(scene, Window(Inputs([bad]), 0, 6), failed=[bad])
    assert f"got none ({type(error).__name__}: " in message
    assert error.__traceback__ is None
    assert scene.service.stats().caches[0].entries == 0
    scene.model.form = list
    assert run(scene, Window(Inputs([bad]), 0, 6)) == [None]


def test_cause_of_a_megabyte_is_shortened() -> None:
    found = cause_text(OSError("x" * (MOST_CHARACTERS - 1) + "y" * (1 << 20)))
    assert found == f"OSError: {'x' * (MOST_CHARACTERS - 3)}..."
    whole = "x" * MOST_CHARACTERS
    assert cause_text(OSError(whole)) == f"OSError: {whole}"
