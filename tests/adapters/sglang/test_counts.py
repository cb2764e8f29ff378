"""`Counts`: the texts that are logged once, and the numbers of the statistics."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError
from threading import Thread

import pytest
from sglang_fakes.requests import image

from vitcache.adapters.sglang.counts import REASONS, Counts, SglangStats


def test_new_counts_are_the_defaults_of_the_statistics() -> None:
    assert Counts().read(()) == SglangStats()


def test_each_reason_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    counts = Counts()
    with caplog.at_level(logging.DEBUG, "vitcache.adapters.sglang"):
        for _ in range(3):
            for reason in REASONS:
                counts.add_original(reason)
    assert counts.read(()).originals == dict.fromkeys(REASONS, 3)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == len(REASONS)
    assert all(sum(text in message for message in texts) == 1 for text in REASONS.values())
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_unknown_reason_raises_and_is_not_counted() -> None:
    counts = Counts()
    with pytest.raises(KeyError):
        counts.add_original("bored")
    assert counts.read(()).originals == {}


def test_items_without_a_key_are_counted_and_the_first_is_described(caplog: pytest.LogCaptureFixture) -> None:
    counts = Counts()
    with caplog.at_level(logging.WARNING, "vitcache.adapters.sglang"):
        for _ in range(3):
            counts.add_unshared(image(1, (0, 1), feature=object(), frames=set()))
    assert counts.read(()).unshared == 3
    [message] = [record.getMessage() for record in caplog.records]
    assert "object" in message
    assert "frames" in message
    assert "set" in message


def test_statistics_are_a_snapshot_and_cannot_be_changed() -> None:
    counts = Counts()
    counts.add_original("device")
    before = counts.read(())
    counts.add_original("device")
    counts.steps += 1
    assert before.originals == {"device": 1}
    assert before.steps == 0
    with pytest.raises(FrozenInstanceError):
        before.steps = 2  # type: ignore[misc]


def test_counts_are_read_while_another_thread_adds() -> None:
    counts = Counts()

    def add() -> None:
        for _ in range(2000):
            for reason in REASONS:
                counts.add_original(reason)

    thread = Thread(target=add)
    thread.start()
    totals = []
    while thread.is_alive():
        totals.append(sum(counts.read(()).originals.values()))
    thread.join()
    assert totals == sorted(totals)
    assert counts.read(()).originals == dict.fromkeys(REASONS, 2000)
