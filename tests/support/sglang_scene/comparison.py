"""The same steps with SGLang as it was released, with the plug-in, and in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sglang_scene.language_model import LanguageModel
from sglang_scene.plugin import plugged, stock
from sglang_scene.prompts import Window
from sglang_scene.steps import run_step
from sglang_scene.tower import Tower
from sglang_scene.truth import step_rows
from vitcache.adapters.sglang import SglangStats, stats

# Makes the steps anew for each side: both sides write into SGLang's objects.
Script = Callable[[], Iterable[Sequence[Window]]]
Functions = Mapping[Any, Any]


@dataclass
class Run:
    """The steps of one side.

    Attributes
    ----------
    rows, truth
        Per step, the rows of `run_step` and of plain torch.
    encodes, calls
        Per step, the items that were encoded so far, and the calls of the tower.
    num_steps
        Steps in which SGLang calls `embed_mm_inputs`.
    """

    tower: Tower
    rows: list[Tensor] = field(default_factory=list)
    truth: list[Tensor] = field(default_factory=list)
    encodes: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    num_steps: int = 0
    stats: SglangStats = field(default_factory=SglangStats)

    @property
    def wrong_tokens(self) -> list[list[int]]:
        """Per step, the tokens whose rows differ from the truth."""
        return [
            (rows.view(torch.int16) != truth.view(torch.int16)).any(1).nonzero().flatten().tolist()
            for rows, truth in zip(self.rows, self.truth, strict=True)
        ]

    @property
    def is_right(self) -> bool:
        return not any(self.wrong_tokens)


def play(
    side: AbstractContextManager[None],
    script: Script,
    tower: Tower | None = None,
    *,
    padding: int = 0,
    functions: Callable[[Tower], Functions] | None = None,
) -> Run:
    """Run the steps of a script on one side: `stock()` or `plugged()`.

    `functions` makes the encoders of a step, as models of SGLang that make them in each forward pass.
    """
    model = LanguageModel()
    run = Run(tower or Tower())
    with side, torch.no_grad():
        for windows in script():
            made = None if functions is None else functions(run.tower)
            run.rows.append(run_step(windows, model, run.tower, padding, made))
            run.truth.append(step_rows(windows, model, run.tower, padding))
            run.encodes.append(run.tower.num_encodes)
            run.calls.append(len(run.tower.batches))
            run.num_steps += any(window.prompt.inputs is not None for window in windows)
        run.stats = stats()
    return run


def both(
    script: Script,
    make_tower: Callable[[], Tower] = Tower,
    *,
    padding: int = 0,
    functions: Callable[[Tower], Functions] | None = None,
) -> tuple[Run, Run]:
    """Play a script with SGLang as it was released and with the plug-in. Both must be right.

    Returns
    -------
    tuple of Run
        SGLang's run and the plug-in's.
    """
    runs = [
        play(side, script, make_tower(), padding=padding, functions=functions)
        for side in (stock(), plugged())
    ]
    assert [run.wrong_tokens for run in runs] == [[[]] * len(run.rows) for run in runs]
    for theirs, ours in zip(runs[0].rows, runs[1].rows, strict=True):
        assert torch.equal(theirs, ours)
    ours = runs[1]
    assert (ours.stats.errors, dict(ours.stats.originals)) == (0, {})
    assert (ours.stats.steps, ours.stats.encodes) == (ours.num_steps, ours.tower.num_encodes)
    return runs[0], runs[1]
