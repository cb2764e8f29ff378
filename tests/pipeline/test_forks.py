"""Pipelines, caches and key threads that were made before a fork work in the child, and no lock hangs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from caches import make_cache
from hang_guard import text_in_child
from pipeline_scene import Tower, expected, feature, make_ids, make_weight

from vitcache import Chunk, Item, Prefetch, Span, VisionPipeline

SCRIPT = Path(__file__).parents[1] / "support" / "busy_forks.py"
WEIGHT = make_weight()
SECONDS = 60


def step(pipeline: VisionPipeline, seed: int, load: Callable[[], torch.Tensor] | None = None) -> None:
    chunks, ids = [Chunk([Item(load or feature(seed, 2), Span(1, 2))], 0, 4)], make_ids(4)
    result = pipeline.embed(chunks, ids, WEIGHT)
    assert result.errors == []
    plain = [Chunk([Item(feature(seed, 2), Span(1, 2))], 0, 4)]
    assert torch.equal(result.inputs_embeds, expected(plain, ids, WEIGHT)[0])


def use(pipeline: VisionPipeline) -> str:
    step(pipeline, 1)
    step(pipeline, 2, lambda: feature(2, 2))
    pipeline.prefetch([Chunk([Item(feature(3, 2), Span(0, 2))], 0, 4)]).wait(SECONDS)
    step(pipeline, 3)
    pipeline.cache.check_integrity()
    pipeline.close()
    return f"{len(pipeline.cache)} entries"


@pytest.mark.parametrize("is_used", [False, True])
def test_pipeline_made_before_a_fork_works_in_each_child_and_in_the_parent(is_used: bool) -> None:
    with VisionPipeline(Tower(), make_cache()) as pipeline:
        if is_used:
            pipeline.prefetch([Chunk([Item(feature(4, 2), Span(0, 2))], 0, 4)]).wait(SECONDS)
            step(pipeline, 5, lambda: feature(5, 2))
        entries = f"{5 if is_used else 3} entries"
        assert [text_in_child(lambda: use(pipeline)) for _ in range(3)] == [entries] * 3
        assert use(pipeline) == entries


def test_prefetch_that_runs_at_a_fork_fails_in_the_child_and_ends_in_the_parent() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def load() -> torch.Tensor:
        begun.set()
        assert may_end.wait(SECONDS)
        return feature(1, 2)

    with VisionPipeline(Tower(), make_cache()) as pipeline:
        running = pipeline.prefetch([Chunk([Item(load, Span(0, 1), num_rows=2)], 0, 4)])
        queued = pipeline.prefetch([Chunk([Item(feature(2, 2), Span(0, 2))], 0, 4)])
        assert begun.wait(SECONDS)
        for handle in (running, queued):
            message = text_in_child(handle.wait)
            submitted = f"JobLostError: the job was submitted in process {os.getpid()}: "
            assert re.fullmatch(rf"{submitted}process \d+ lacks its threads", message)
        assert text_in_child(lambda: use(pipeline)) == "3 entries"
        assert text_in_child(lambda: [handle.done for handle in (running, queued)]) == "[True, True]"
        may_end.set()
        wait_for(running)
        wait_for(queued)
        assert len(pipeline.cache) == 2


def wait_for(handle: Prefetch) -> None:
    handle.wait(SECONDS)
    assert handle.done


def run_busy_forks(num_children: int) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, SCRIPT, str(num_children)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120 + 2 * num_children,
    )
    assert (done.returncode, done.stdout) == (0, f"{num_children} children did not fail\n"), done.stderr


def test_children_forked_while_six_threads_are_busy_do_not_hang() -> None:
    run_busy_forks(15)


@pytest.mark.soak
def test_hundreds_of_children_forked_while_six_threads_are_busy_do_not_hang() -> None:
    run_busy_forks(490)
