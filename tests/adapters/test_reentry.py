"""Calls of the adapters from a signal handler or a finalizer inside of another of their calls; interrupts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress

import pytest
import torch
from byte_scene import odd_weights, watch, write_numpy
from caches import make_cache
from interrupts import act_at, interrupt
from lazy_scene import LazyScene
from torch import nn

from vitcache import Namespace, scatter_embeddings, tracing
from vitcache.adapters import disabling, lazy_features, lazy_rows, session
from vitcache.adapters.changes import byte_fingerprint, model_changes, model_namespace
from vitcache.adapters.changes.invalidation import invalidate_after
from vitcache.adapters.changes.model_namespace import ModelNamespace
from vitcache.adapters.session import Session

SECONDS = 60


def stop() -> None:
    raise KeyboardInterrupt


def returns(call: Callable[[], object]) -> bool:
    """Whether a call returns, in a thread of its own. False: it hangs."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return not thread.is_alive()


def run_at_each_line(
    make_call: Callable[[], Callable[[], object]],
    files: set[str],
    handler: Callable[[], object] | None = None,
    check: Callable[[int], None] = lambda line: None,
) -> int:
    """Call `handler` at each line of a new call, one line after the other. Return the number of lines.

    None: KeyboardInterrupt is raised there.
    """
    found = [True]
    while found[-1]:
        line, call = len(found), make_call()

        def run(call: Callable[[], object] = call, line: int = line) -> None:
            if handler is None:
                found.append(interrupt(call, line, files))
            else:
                found.append(act_at(call, line, files, handler))

        assert returns(run), f"line {line} hangs"
        check(line)
    return len(found) - 2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(2, 2)
        self.language_model = nn.Linear(2, 2)


def file_of(*modules: object) -> set[str]:
    return {str(module.__file__) for module in modules}


def test_counts_of_an_attachment_can_be_read_and_changed_inside_of_each_other() -> None:
    each = Session(Model(), "tower", make_cache(width=2), Namespace("m"), None, 0)

    def handler() -> None:
        each.count(hits=1)
        each.disabled.count()
        each.warn_training()
        each.forget("a kind")
        assert each.stats.hits > 0

    def use() -> None:
        each.count(hits=1, encoded=1)
        each.note_difference(bytes(32), 0.0)
        each.disabled.count()
        each.mover_to(torch.device("cpu"))
        each.forget("a kind")
        _ = each.stats, each.current_namespace()

    num_lines = run_at_each_line(
        lambda: use, file_of(session, disabling, model_changes, model_namespace), handler
    )
    assert num_lines > 40
    stats = each.stats
    assert (stats.hits, stats.encoded) == (2 * num_lines + 1, num_lines + 1)
    assert stats.disabled_calls == 2 * num_lines + 1


@pytest.mark.parametrize("levels", [0, 2])
def test_features_can_be_read_inside_of_their_first_read(levels: int) -> None:
    scenes: list[LazyScene] = []

    def make_read() -> Callable[[], object]:
        scenes.append(LazyScene.of(levels))
        return scenes[-1].lazy[levels].with_memory

    def handler() -> None:
        for lazy in scenes[-1].lazy:
            lazy + 0

    def check(line: int) -> None:
        for lazy, plain in zip(scenes[-1].lazy, scenes[-1].plain, strict=True):
            assert torch.equal(lazy + 0, plain), line

    files = file_of(lazy_features, lazy_rows)
    assert run_at_each_line(make_read, files, handler, check) > 20
    assert run_at_each_line(make_read, files, None, check) > 20


@pytest.mark.parametrize("calls", [1, 3])
def test_check_of_the_fingerprint_interrupted_at_any_line_leaves_later_checks(
    calls: int,
) -> None:
    scenes = []

    def make_check() -> Callable[[], object]:
        fingerprint, owner = watch(calls, odd_weights())
        scenes.append((fingerprint, owner))
        write_numpy(owner.model.matrix)
        return lambda: fingerprint.check(owner)

    def check(line: int) -> None:
        fingerprint, owner = scenes[-1]
        for _ in range(calls + 1):
            assert returns(lambda: fingerprint.check(owner))
        assert owner.num_namespaces > 0, line  # the entries of the earlier bytes are not used again
        before = len(owner.changed)
        write_numpy(owner.model.matrix)
        for _ in range(calls + 1):
            assert returns(lambda: fingerprint.check(owner))
        assert len(owner.changed) > before, line

    assert run_at_each_line(make_check, file_of(byte_fingerprint), None, check) > 10


def test_check_of_the_fingerprint_inside_of_another_check_returns_at_once() -> None:
    scenes = []

    def make_check() -> Callable[[], object]:
        scenes.append(watch(2, odd_weights()))
        fingerprint, owner = scenes[-1]
        return lambda: fingerprint.check(owner)

    def handler() -> None:
        fingerprint, owner = scenes[-1]
        fingerprint.check(owner)

    def check(line: int) -> None:
        fingerprint, owner = scenes[-1]
        write_numpy(owner.model.matrix)
        for _ in range(3):
            fingerprint.check(owner)
        assert owner.changed, line

    assert run_at_each_line(make_check, file_of(byte_fingerprint), handler, check) > 5


@pytest.mark.parametrize("change", ["weight", "setting", "module"])
def test_look_interrupted_at_any_line_does_not_keep_the_earlier_namespace(change: str) -> None:
    scenes: list[tuple[ModelNamespace, bytes]] = []

    def make_look() -> Callable[[], object]:
        model = Model()
        names = ModelNamespace(model, "tower", Namespace("model"))
        names.look()
        scenes.append((names, names.value))
        if change == "weight":
            with torch.no_grad():
                model.tower.weight.zero_()
        elif change == "setting":
            model.tower.scale = 2.0
        else:
            model.tower = nn.Linear(2, 2)
        scenes[-1] += (model,)
        return names.look

    def check(line: int) -> None:
        names, before = scenes[-1][:2]
        names.look()
        assert names.value != before, line

    assert run_at_each_line(make_look, file_of(model_namespace), None, check) > 10


def test_interrupt_of_one_function_of_invalidate_after_lets_the_next_ones_run() -> None:
    class Owner:
        def step(self) -> None:
            pass

    called: list[int] = []

    owner = Owner()
    invalidate_after(owner, "step", stop, lambda: called.append(1))
    with pytest.raises(KeyboardInterrupt):
        owner.step()
    assert called == [1]


def switched(handler: Callable[[], object], first: Callable[[], None]) -> list[tuple[bool, bool]]:
    """Run `first`, with the handler at each of its lines, from tracing that is in the other state.

    Return for each line whether tracing is on afterwards, and whether a launch then opens a range.
    """
    second = tracing.disable if first is tracing.enable else tracing.enable
    results = []
    line = 1
    while True:
        second()
        is_called = True
        with suppress(KeyboardInterrupt):
            is_called = act_at(first, line, file_of(tracing), handler)
        results.append((tracing.is_enabled(), opens_range()))
        if not is_called:
            return results
        line += 1 + line // 8  # thousands of lines, one for each imported module


def opens_range() -> bool:
    """Whether a launch opens a range."""
    opened: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.profiler, "record_function", lambda name: opened.append(name) or nullcontext())
        scatter_embeddings(torch.zeros(3, 2), [torch.ones(1, 2)], [1])
    return bool(opened)


@pytest.mark.parametrize("first", [tracing.enable, tracing.disable])
def test_tracing_interrupted_at_any_line_is_on_or_off_as_a_whole(first: Callable[[], None]) -> None:
    try:
        results = switched(stop, first)
    finally:
        tracing.disable()
    assert len(results) > 5
    assert all(is_on == has_range for is_on, has_range in results)
    assert not opens_range()


@pytest.mark.parametrize("first", [tracing.enable, tracing.disable])
def test_tracing_switched_inside_of_a_switch_has_the_state_of_one_of_them(first: Callable[[], None]) -> None:
    try:
        for second in (tracing.enable, tracing.disable):
            results = switched(second, first)
            assert all(is_on == has_range for is_on, has_range in results)
    finally:
        tracing.disable()
