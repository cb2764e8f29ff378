"""The program of one of two tensor parallel ranks of SGLang. test_ranks starts it, and reads its result.

The steps run through SGLang's released `general_mm_embed_routine`, with its own groups of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from hang_guard import end_if_it_hangs
from ranks import run_rank
from sglang.srt.managers import mm_schedule
from sglang_scene.language_model import LanguageModel
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import Prompt, Window, images
from sglang_scene.random_steps import Traffic
from sglang_scene.ranks import RANK, STOCK_TIMEOUT, SplitTower, counted_agreements, start_ranks, unreadable
from sglang_scene.restarts import serving
from sglang_scene.steps import run_step
from sglang_scene.truth import step_rows
from sglang_scene.waiting import enter, make_request
from torch import Tensor, distributed

from vitcache.adapters.sglang import ranks, service, stats
from vitcache.pipeline import encoder_runner
from vitcache.testing import inspect

LIMIT_S = 180
NUM_STEPS = 220
SIZES = (1 << 13, 1 << 15)  # the device bytes of each rank
model = LanguageModel()


def digest(rows: Sequence[Tensor]) -> str:
    return hashlib.sha256(b"".join(part.view(torch.int16).numpy().tobytes() for part in rows)).hexdigest()


def is_right(windows: Sequence[Window], rows: Tensor, tower: SplitTower, *bad: Any) -> bool:
    """Whether a step has the rows of plain torch, and zeros for `bad` items."""
    failing = set(tower.failing)
    tower.failing |= {item.hash for item in bad}
    truth = step_rows(windows, model, tower)
    tower.failing = failing
    return torch.equal(rows.view(torch.int16), truth.view(torch.int16))


def diverge() -> dict[str, Any]:
    """The same prompt again and again: on all ranks, then with a cleared rank, then in one step of hits."""
    tower, prompt = SplitTower(), images(3)
    found: dict[str, Any] = {"agreements": [], "encodes": [], "right": []}
    with plugged(max_rows_per_encode=20):
        for cleared in (None, None, 0, 1, None):
            if cleared == RANK:
                service.SERVICE.clear()
            with counted_agreements() as calls:
                rows = run_step([prompt.window()], model, tower)
            found["agreements"].append(calls)
            found["encodes"].append(tower.num_encodes)
            found["right"].append(is_right([prompt.window()], rows, tower))
        found["errors"] = stats().errors
    return found


def many() -> dict[str, Any]:
    """A step of 70 items, more than one message has."""
    tower, prompt = SplitTower(), images(70, rows=1, gap=1)
    with plugged(), counted_agreements() as calls:
        rows = run_step([prompt.window()], model, tower)
    return {"agreements": calls, "right": is_right([prompt.window()], rows, tower)}


def alone(rank: int, cleared: int | None, num_images: int) -> dict[str, Any]:
    """One rank cannot read the last image of a prompt. Both ranks miss it, or only the cleared one."""
    tower, prompt = SplitTower(), images(num_images)
    bad, window, again = prompt.items[-1], prompt.window(), images(num_images).window()
    with plugged():
        if cleared is not None:
            run_step([images(num_images).window()], model, tower)
        if cleared == RANK:
            service.SERVICE.clear()
        with unreadable(bad) if rank == RANK else nullcontext():
            failed = is_right([window], run_step([window], model, tower), tower, bad)
        mended = is_right([again], run_step([again], model, tower), tower)
        return {"failed": failed, "mended": mended, "errors": stats().errors, "encodes": tower.num_encodes}


def load() -> list[dict[str, Any]]:
    return [alone(rank, cleared, n) for n in (1, 3) for rank in (0, 1) for cleared in (None, 0, 1)]


def behind_the_encoder() -> dict[str, Any]:
    """Rank 1 alone has no memory for the rows of the second image, behind the call of the encoder."""
    tower, prompt, original = SplitTower(2, "list"), images(3), encoder_runner.check_encoded_rows
    checked = []

    def check(*arguments: Any) -> Any:
        checked.append(None)
        if RANK == 1 and len(checked) == 2:
            raise MemoryError("no memory on this rank")
        return original(*arguments)

    encoder_runner.check_encoded_rows = check
    with plugged():
        rows = run_step([prompt.window(0, 38)], model, tower)
        encoder_runner.check_encoded_rows = original
        failed = is_right([prompt.window(0, 38)], rows, tower, prompt.items[1])
        again = run_step([prompt.window()], model, tower)
        mended = is_right([prompt.window()], again, tower)
        return {"failed": failed, "mended": mended, "errors": stats().errors, "encodes": tower.num_encodes}


def raised(step: Callable[[], object]) -> str:
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def fail(*_: Any) -> NoReturn:
    raise ValueError("only on this rank")


class Unconverted(Tensor):
    """Rows ``(1, rows, width)`` of which rank 1 cannot make a tensor ``(rows, width)``."""

    def __new__(cls, rows: Tensor) -> Unconverted:
        return rows[None].as_subclass(cls)

    def reshape(self, *shape: int) -> Tensor:
        return fail() if RANK == 1 else self.as_subclass(Tensor).reshape(*shape)


def ends() -> dict[str, str]:
    """Calls of the encoder that end differently on rank 1, behind their collective."""
    found = {}
    for name, behind in (("raises", fail), ("rows", lambda rows: rows[:-1]), ("converts", Unconverted)):
        tower = SplitTower()
        if RANK == 1 or behind is Unconverted:
            tower.behind = behind
        with plugged():
            found[name] = raised(lambda tower=tower: run_step([images(2).window()], model, tower))
    return found


def traffic(seed: int, levels: int) -> dict[str, Any]:
    """Wild random steps on ranks with different caches, and with items that one rank cannot read.

    `repeated` counts the steps with an equal of such an item.
    """
    wild = Traffic(seed, NUM_STEPS, levels=levels, is_wild=True)
    tower = SplitTower(levels, wild.tower().form)
    tower.failing, tower.short = wild.tower().failing, wild.tower().short
    rng = random.Random(seed)
    rows: list[Tensor] = []
    found: Counter[str] = Counter()
    repeated = 0
    options = {"host_bytes": 1 << 15} if seed % 2 == RANK else {}
    with plugged(SIZES[RANK], max_rows_per_encode=40, **options):
        for number, windows in enumerate(wild()):
            items = [item for window in windows for item in window.prompt.items]
            for item in items:
                if item.hash % 7 == 0:
                    item.model_specific_data["opaque"] = object()  # cannot be hashed
            # Equal items are one item, if they can be hashed. The truth knows items by their hash alone.
            kinds: dict[int, set[Any]] = {}
            for item in items:
                kind = (item.modality, item.precomputed_embeddings is None, item.hash % 7 or id(item))
                kinds.setdefault(item.hash, set()).add(kind)
            known = [item for item in items if len(kinds[item.hash]) == 1]
            known = [item for item in known if item.precomputed_embeddings is None]
            bad = [rng.choice(known)] if known and rng.random() < 0.3 else []
            repeated += len(bad) and sum(item.hash == bad[0].hash for item in items) > 1
            if number % 11 == 3 + RANK:
                service.SERVICE.clear()
            with unreadable(*bad) if number % 2 == RANK else nullcontext():
                rows.append(run_step(windows, model, tower))
            right = is_right(windows, rows[-1], tower)
            zero = bool(bad) and is_right(windows, rows[-1], tower, *bad)
            found["right" if right else "failed on one rank" if zero else "wrong"] += 1
        counts = stats()
    [cache] = counts.caches
    return {
        "steps": found,
        "repeated": repeated,
        "digest": digest(rows),
        "calls": [len(batch) for batch in tower.batches],
        "counts": [counts.steps, counts.encodes, counts.errors, counts.unshared, dict(counts.originals)],
        "cache": [cache.hits, cache.evictions, cache.rejections, cache.demotions],
    }


def random_steps() -> list[dict[str, Any]]:
    return [traffic(seed, levels) for seed, levels in ((0, 0), (1, 2))]


def stock_deadlock() -> str:
    """SGLang's own function with caches that differ: rank 0 waits in the encoder's collective."""
    tower, prompt = SplitTower(group=distributed.new_group(timeout=STOCK_TIMEOUT)), images(2)
    with stock():
        run_step([prompt.window()], model, tower)
        if RANK == 0:
            mm_schedule.embedding_cache.clear()
        return raised(lambda: run_step([prompt.window()], model, tower))


def lost() -> str:
    """Rank 1 raises before its collective, in which rank 0 waits: rank 1 ends, and then rank 0."""
    ranks.RAISED_WAIT = STOCK_TIMEOUT
    tower = SplitTower()
    if RANK == 1:
        tower.before = fail
    with plugged():
        return raised(lambda: run_step([images(2).window()], model, tower))


def disks() -> dict[str, Any]:
    """Each rank has a folder of its own, and has lost another image in it."""
    folder = Path(sys.argv[1], f"disk{RANK}")
    found: dict[str, Any] = {"right": [], "encodes": [], "batches": []}
    with serving(folder, SplitTower()) as server:
        for _ in range(3):
            found["right"].append(server.answer(images(3)))
        [cache] = service.SERVICE.models.caches
        server.keep()
        cache.discard(sorted(inspect(cache).eviction_order("device"))[RANK])
        found["encodes"].append(server.tower.num_encodes)
    with serving(folder, SplitTower()) as server:
        requests = [("image", images(3)), ("text", Prompt(5)), ("again", images(3))]
        enter(server.scheduler, *(make_request(*each) for each in requests))
        while server.scheduler.queue:  # all ranks choose equal batches, one after the other
            found["batches"].append(server.scheduler.take())
        found["right"].append(server.step([images(3), images(3)]))
        found["encodes"].append(server.tower.num_encodes)
        [cache] = service.SERVICE.models.caches
        found["own"] = cache.stats().tiers[0].hits
    return found


SCENES = (diverge, many, load, behind_the_encoder, ends, disks, random_steps, stock_deadlock, lost)


def main(folder: str) -> None:
    end_if_it_hangs(LIMIT_S)
    start_ranks()
    found = {}
    with torch.no_grad():
        for scene in SCENES:
            found[scene.__name__] = scene()
            Path(folder, f"rank{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run_rank(main)
    os._exit(0)  # the groups are broken at the end
