"""Results that no machine measured, of the benches that need a GPU: their figures are drawn from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vitcache.bench.chats.contenders import CONTENDERS
from vitcache.bench.chats.sides import SIDES
from vitcache.bench.claims import (
    bench_blocks,
    bench_hits,
    bench_limit,
    bench_multiturn,
    bench_scatter,
    bench_sglang,
    bench_sglang_chat,
)
from vitcache.bench.harness.registry import GPU, PLACEMENT_CASES, cases_for
from vitcache.bench.sglang.sides import STOCK, VITCACHE

BENCHES = ("blocks", "hits", "limit", "multiturn", "placement", "scatter", "sglang", "sglang_chat", "step")
MACHINE = {
    "device": "NVIDIA H100 80GB HBM3",
    "torch": "2.9.0+cu130",
    "commit": "0123456789ab",
    "utc": "2026-01-02T03:04:05+00:00",
}


def dry_results(bench: str) -> list[dict[str, Any]]:
    """Return rows with all contenders of the full cases of a bench; neighbours differ."""
    rows = []
    for number, (case, contender, metric, unit, limit) in enumerate(_results(bench)):
        ratio = 1 + number % 13 / 4
        value = (5 + number % 50) if limit is None else 100 * ratio
        target = 1.5 if limit and number % 7 == 0 else None
        spread = {"value": value, "p20": 0.95 * value, "p80": 1.1 * value}
        row = {"bench": bench, "case": case, "contender": contender, "metric": metric, "unit": unit, **spread}
        ratios = {
            "ratio": ratio if limit else None,
            "ratio_to": limit,
            "target": target,
            "meets_target": None,
        }
        rows.append({**row, **ratios, **MACHINE})
    return rows


def _results(bench: str) -> Iterator[tuple[str, str, str, str, str | None]]:
    """Yield case, contender, metric, unit and limit of each row."""
    placed = [case.name for case in PLACEMENT_CASES["full"]]
    if bench == "placement":
        yield from ((case, name, "device_us", "us", "copy") for case in placed for name in CONTENDERS)
    elif bench == "scatter":
        for case in placed:
            for name in bench_scatter.SOURCES:
                limit = "pinned-copy" if name.startswith("host") else "copy"
                yield case, name, "device_us", "us", "1.5 copies" if name == bench_scatter.STORED else limit
    elif bench == "hits":
        names = (bench_hits.ON_DEVICE, bench_hits.COMPUTED, bench_hits.ON_HOST, bench_hits.PROMOTED)
        for full in bench_hits.CASES["full"]:
            for name in (*names, bench_hits.COPY, bench_hits.PINNED_COPY):
                yield full.name, name, "hits_us", "us", "pinned-copy" if "host" in name else "copy"
    elif bench == "limit":
        yield from (("1920x1080", name, "limit", "images", "no cache") for name in bench_limit.CONTENDERS)
    elif bench == "blocks":
        for block_case in bench_blocks.CASES["full"]:
            for block, warps in block_case.shapes:
                yield block_case.name, f"{block}x{warps}", "device_us", "us", "copy"
    elif bench == "multiturn":
        for chat in bench_multiturn.CASES["full"]:
            for name in SIDES:
                for turn in range(1, chat.turns + 1):
                    yield f"{chat.name} turn {turn}", name, "vit_ms", "ms", "turn 1"
                    yield f"{chat.name} turn {turn}", name, "ttft_ms", "ms", "no cache"
                yield f"{chat.name} turn {chat.turns}", name, "encoded", "images", None
    elif bench == "sglang":
        for step_case in cases_for(bench_sglang.CASES["full"], "full", GPU):
            for metric in ("device_us", "host_us"):
                for name in (STOCK, VITCACHE):
                    yield step_case.name, name, metric, "us", STOCK
    elif bench == "sglang_chat":
        for chat_engines in cases_for(bench_sglang_chat.CASES["full"], "full", GPU):
            for served in chat_engines.chats:
                for name in chat_engines.contenders:
                    for turn in range(1, served.turns + 1):
                        yield f"{served.name} turn {turn}", name, "ttft_ms", "ms", STOCK
                        yield f"{served.name} turn {turn}", name, "encoded", "images", None
    elif bench == "step":
        for name in ("tower", "tower, one call", ".to, one call", "vitcache", "vitcache, keys computed"):
            yield "8x1920x1080", name, "step_us", "us", "tower"
