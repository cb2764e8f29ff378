"""The rows of the result file of the bench `sglang_chat`, from the measurements of its engines."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Sample
from vitcache.bench.sglang.chat_engines import HOST_TIER, STOCK

Taken = Mapping[str, Any]  # the result of a step by contender
IMAGES_PER_TURN = 1  # target of the design, for every turn
SWAPPED = "swapped"


def add_turns(
    recorder: Recorder, size: str, results: Mapping[str, Sequence[dict[str, Any]]], *, is_judged: bool
) -> None:
    """Add, per turn, the time to the first token and the encoded images; for the last turn, also by chunk.

    `is_judged` says whether the design's target applies: an image must fit in the device tier.
    """
    judged = (HOST_TIER,) if is_judged else ()
    last = max(answer["turn"] for answer in results[STOCK])
    for turn in range(1, last + 1):
        passes = {name: [each for each in taken if each["turn"] == turn] for name, taken in results.items()}
        ttft = {name: Sample.of([each["ttft_ms"] for each in taken]) for name, taken in passes.items()}
        images = {name: Sample.of([_encoded(each) for each in taken]) for name, taken in passes.items()}
        for name in results:
            case, target = f"{size} turn {turn}", IMAGES_PER_TURN if name in judged else None
            recorder.add(case, name, "ttft_ms", "ms", ttft[name], against=(STOCK, ttft[STOCK].value))
            recorder.add(case, name, "encoded", "images", images[name], target=target, limit=target)
    for chunk in range(len(passes[STOCK][0]["chunks"])):
        vit = {
            name: Sample.of([each["chunks"][chunk]["vit_ms"] for each in taken])
            for name, taken in passes.items()
        }
        for name, sample in vit.items():
            reference = vit[STOCK].value
            recorder.add(
                f"{size} turn {last} chunk {chunk + 1}",
                name,
                "chunk_vit_ms",
                "ms",
                sample,
                against=(STOCK, reference) if reference else None,
            )


def add_limit(recorder: Recorder, case: str, results: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Add the most images of an answered request, its memory, and the rows of the largest encoder call.

    The last two are those of the largest request that all engines have answered.
    """
    most = {name: taken[-1]["count"] for name, taken in results.items()}
    common = min(most.values())
    for name, taken in results.items():
        limit = most[STOCK] if name != STOCK else None
        recorder.add(
            case,
            name,
            "max_images",
            "images",
            Sample.of([float(most[name])]),
            against=(STOCK, most[STOCK]),
            target=limit,
            limit=limit,
            at_least=True,
        )
        [answer] = [each for each in taken if each["count"] == common]
        rows = max(chunk["largest"] for chunk in answer["chunks"])
        label = f"{case}, {common} images"
        recorder.add(label, name, "largest_encode", "rows", Sample.of([float(rows)]))
        recorder.add(label, name, "peak_mib", "MiB", Sample.of([answer["peak_bytes"] / 2**20]))


def add_answers(recorder: Recorder, case: str, results: Taken, target: float | None) -> None:
    """Add the share of right answers, the answers unlike stock's, and the share of images that were hits."""
    expected, stock = results[STOCK]["expected"], results[STOCK]["answers"]
    right = {
        name: sum(map(operator.eq, taken["answers"], expected)) / len(expected)
        for name, taken in results.items()
    }
    for name, taken in results.items():
        # Without a target, no limit applies: after a short training, a swap may correct answers by chance.
        limit = target
        if limit is not None and name != STOCK:
            limit = right[STOCK] - (name == SWAPPED) / len(expected)
        recorder.add(
            case,
            name,
            "accuracy",
            "share",
            Sample.of([right[name]]),
            against=(STOCK, right[STOCK]) if right[STOCK] else None,
            target=limit,
            limit=limit,
            at_least=name != SWAPPED,
        )
        hits = 1 - taken["encodes"] / taken["images"]
        recorder.add(case, name, "hit_share", "of images", Sample.of([hits]))
        if name == STOCK:
            continue
        different = sum(map(operator.ne, taken["answers"], stock))
        least = int(name == SWAPPED)
        recorder.add(
            case,
            name,
            "different_answers",
            f"of {len(expected)}",
            Sample.of([float(different)]),
            target=least if target is not None or not least else None,
            limit=least if target is not None or not least else None,
            at_least=name == SWAPPED,
        )


def _encoded(answer: dict[str, Any]) -> float:
    return float(sum(chunk["images"] for chunk in answer["chunks"]))
