"""Claims about vLLM: with vitcache a step costs the host less, and a conversation encodes each image once.

`engine_inputs` measures the host's time of the step of Model Runner V2 that builds `inputs_embeds`.
`engine_chats` lets engines answer one conversation, stock and with vitcache, each in a process of its own.
`engine_wins` measures the differences to vLLM's own ECCPUConnector. On the CPU, Triton's interpreter runs
Model Runner V2, so the bench records no time of a whole step there.
"""

from __future__ import annotations

from collections.abc import Iterator

from vitcache.bench.claims.engine_chats import ChatCase, GpuChatCase, run_chat
from vitcache.bench.claims.engine_figure import draw as draw
from vitcache.bench.claims.engine_inputs import InputsCase, run_inputs
from vitcache.bench.claims.engine_wins import MEASURES, WinsCase, run_wins
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer

NAME = "engines"
REQUIRES = "vllm"
CLAIMS_CPU = True
Case = InputsCase | ChatCase | WinsCase
CASES: dict[str, list[Case]] = {
    "full": [
        *(InputsCase(hits, levels) for levels in (0, 3) for hits in (0, 1, 8, 32)),
        ChatCase(24),
        GpuChatCase(24, "8b", cache_rows=8192),
        *(WinsCase(wins) for wins in MEASURES.values()),
    ],
    "smoke": [
        InputsCase(0),
        InputsCase(2),
        InputsCase(2, levels=3),
        ChatCase(6, cache_rows=128),
        WinsCase((1, 2, 3, 4)),
        WinsCase((5, 7, 9, 10)),
    ],
}


def run_case(case: Case, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    if isinstance(case, InputsCase):
        yield from run_inputs(case, recorder, timer)
    elif isinstance(case, WinsCase):
        yield from run_wins(case, recorder, timer)
    else:
        yield from run_chat(case, recorder, timer)
