"""Tracing: ranges around keys, copies, encodes and placements; without it, no frame and no call."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from caches import make_cache
from pipeline_scene import HIDDEN, VOCABULARY, Tower, feature
from trace_ranges import Ranges, counts, tracing_on  # noqa: F401

from vitcache import Chunk, EmbeddingCache, Item, Span, VisionPipeline, scatter_embeddings, tracing
from vitcache.bench import frames
from vitcache.pipeline.encoder_runner import EncoderRunner
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.placement.scatter_call import ScatterCall


def make_step(pipeline: VisionPipeline, num_items: int) -> Callable[[], object]:
    items = [Item(feature(number, 2), Span(3 * number, 2)) for number in range(num_items)]
    chunk = Chunk(items, 0, 3 * num_items)
    ids, weight = torch.zeros(chunk.length, dtype=torch.int64), torch.randn(VOCABULARY, HIDDEN)
    return lambda: pipeline.embed([chunk], ids, weight)


@pytest.mark.usefixtures("tracing_on")
def test_pipeline_step_opens_one_range_per_keys_copy_encode_and_launch() -> None:
    with VisionPipeline(Tower(), make_cache(8, width=HIDDEN), max_rows_per_encode=4) as pipeline:
        step = make_step(pipeline, 3)
        misses = Ranges(step)
        assert misses.counts == counts(key=1, copy=3, encode=2, place=1)
        # The features of the first micro-batch start to move while the other features are hashed.
        assert misses.nested <= {("copy", "vitcache.key")}
        assert Ranges(step).counts == counts(place=1)


@pytest.mark.usefixtures("tracing_on")
def test_prefetch_opens_the_ranges_of_a_step_in_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def record(name: str) -> AbstractContextManager[None]:
        opened.append(name)
        return nullcontext()

    monkeypatch.setattr(torch.profiler, "record_function", record)
    with VisionPipeline(Tower(), make_cache(8, width=HIDDEN)) as pipeline:
        pipeline.prefetch([Chunk([Item(feature(0, 2), Span(0, 2))], 0, 2)]).wait(60)
    assert opened == ["vitcache.key", "vitcache.copy", "vitcache.encode"]


@pytest.mark.usefixtures("tracing_on")
def test_range_inside_of_a_range_of_the_same_name_is_left_out() -> None:
    mover = FeatureMover(torch.device("cpu"), None, None)

    @tracing.traced("copy")
    def copy_all() -> None:
        for _ in range(3):
            mover.start(torch.ones(2))

    assert Ranges(copy_all).counts == counts(copy=1)


@pytest.mark.usefixtures("tracing_on")
def test_call_that_raises_closes_its_range() -> None:
    mover = FeatureMover(torch.device("cpu"), None, None)
    for _ in range(2):
        with pytest.raises(TypeError, match="a feature must be"):
            mover.start("no tensor")
    assert Ranges(lambda: mover.start(torch.ones(2))).counts == counts(copy=1)


@pytest.mark.usefixtures("tracing_on")
def test_ranges_are_nvtx_ranges_while_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    open_ranges: list[str] = []
    closed: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", open_ranges.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: closed.append(open_ranges.pop()))
    with VisionPipeline(Tower(), make_cache(8, width=HIDDEN)) as pipeline:
        step = make_step(pipeline, 1)
        step()
        assert closed == []
        pipeline.cache.clear()
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        step()
    assert Counter(closed) == {"vitcache.copy": 1, "vitcache.encode": 1, "vitcache.place": 1}
    assert open_ranges == []


def function_of(path: str, name: str) -> Any:
    """Return the function that a call of a traced function or method runs now."""
    owner: Any = import_module(path)
    for part in name.split("."):
        owner = vars(owner)[part] if isinstance(owner, type) else getattr(owner, part)
    return owner


def test_tracing_off_leaves_the_plain_functions_everywhere() -> None:
    tracing.enable()
    tracing.enable()
    made = {entry.plain.__qualname__: entry for entry in tracing._functions}
    marked = [entry for entry in made.values() if entry.plain.__module__.startswith("vitcache.")]
    assert {function.__name__ for function in (EncoderRunner._call, FeatureMover.start)} <= {
        entry.plain.__name__ for entry in marked
    }
    for entry in marked:
        assert function_of(entry.plain.__module__, entry.plain.__qualname__) is entry.in_range
    tracing.disable()
    for entry in marked:
        found = function_of(entry.plain.__module__, entry.plain.__qualname__)
        assert found is entry.plain


def test_tracing_off_enters_the_same_frames_as_before_it_was_on() -> None:
    rows = torch.ones(1, HIDDEN)
    cache = EmbeddingCache(HIDDEN, dtype=torch.float32, device="cpu", device_bytes=1 << 10)
    with VisionPipeline(lambda features, items: [rows for _ in items], cache) as pipeline:
        chunk = Chunk([Item(rows, Span(0, 1), key=bytes(32))], 0, 1)
        ids, weight = torch.zeros(1, dtype=torch.int64), torch.ones(1, HIDDEN)

        def step() -> None:
            pipeline.embed([chunk], ids, weight)
            scatter_embeddings(torch.zeros(2, HIDDEN), [rows], [1])

        step()
        step()
        before = frames.count_frames(step)
        tracing.enable()
        step()
        during = frames.count_frames(step)
        tracing.disable()
        after = frames.count_frames(step)
    assert before == after
    assert "tracing.py" not in before
    assert during - before == Counter({"tracing.py": 2})


def test_method_that_was_bound_while_tracing_was_on_opens_no_range_when_it_is_off() -> None:
    mover = FeatureMover(torch.device("cpu"), None, None)
    tracing.enable()
    start = mover.start
    tracing.disable()
    assert Ranges(lambda: start(torch.ones(2))).counts == counts()


def test_module_whose_import_failed_does_not_prevent_tracing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "interrupted_import.py").write_text(
        "from vitcache.tracing import traced\n"
        "class Mover:\n"
        "    @traced('copy')\n"
        "    def start(self): pass\n"
        "raise KeyboardInterrupt\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        import_module("interrupted_import")
    tracing.enable()
    assert FeatureMover.start.__wrapped__  # type: ignore[attr-defined]
    tracing.disable()
    assert not hasattr(FeatureMover.start, "__wrapped__")


def test_environment_variable_turns_tracing_on_for_modules_imported_later() -> None:
    code = (
        "import vitcache; from vitcache import tracing;"
        "from vitcache.pipeline.feature_mover import FeatureMover;"
        "from vitcache.pipeline import step_runner as runner;"
        "print(tracing.is_enabled(), hasattr(FeatureMover.start, '__wrapped__'),"
        " hasattr(runner.find_keys, '__wrapped__'));"
        "tracing.disable();"
        "print(hasattr(FeatureMover.start, '__wrapped__'), hasattr(runner.find_keys, '__wrapped__'))"
    )
    for value, expected in (
        ("1", "True True True\nFalse False"),
        ("0", "False False False\nFalse False"),
        ("", "False False False\nFalse False"),
    ):
        environment = {**os.environ, "VITCACHE_TRACE": value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def test_launches_of_a_scatter_are_ranges_for_callers_with_an_engine_of_their_own() -> None:
    assert not tracing.is_enabled()
    write = ScatterCall.run_placed
    tracing.enable()
    assert Ranges(lambda: scatter_embeddings(torch.zeros(2, 2), [torch.ones(1, 2)], [1])).counts == counts(
        place=1
    )
    tracing.disable()
    assert ScatterCall.run_placed is write
