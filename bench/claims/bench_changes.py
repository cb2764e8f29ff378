"""Claim: to notice changes of its model costs an attached call at most 20 us of the host, with 400 weights.

The model is a stand-in whose tower has blocks of the shape of transformers'; nothing runs it. "vitcache" is
the whole check of a call, `Session.current_namespace`: weights, settings, hooks, adapters. "native
comparison" is its native part. "versions in Python" is the check that a careful user writes: the identity,
version and address of each weight of the tower. Each contender notices a write before it gets a number.

The other results are of the first call after a change, of a step of an optimizer with and without our hook,
and of the byte fingerprint of `attach(fingerprint_calls=N)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vitcache import EmbeddingCache, Namespace
from vitcache.bench.claims.changing_model import ChangingModel, VersionsInPython
from vitcache.bench.harness import figures
from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.timing import Timer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitcache.adapters.session import Session

NAME = "changes"
DEVICE = torch.device("cpu")
CLAIMS_CPU = True
TARGET_US = 20.0  # of the design, for 400 weights
WIDTH = 8
VITCACHE, NATIVE, PYTHON = "vitcache", "native comparison", "versions in Python"
CHANGED, SWITCHED = "a weight was written", "adapters were switched"
PLAIN = "without vitcache"
STEP, WATCHED = "fused AdamW", "fused AdamW, watched"
CHECK, TAKE, SUM = "check of a call", "new checksums", "plain sum of the weights"


@dataclass(frozen=True)
class ChangeCase:
    """A tower with `tensors` weights, and with two LoRA adapters of each linear layer if `has_adapters`."""

    tensors: int
    has_adapters: bool = False
    target_us: float | None = None

    @property
    def name(self) -> str:
        """The number of weights, and whether there are adapters."""
        return f"{self.tensors:,} tensors" + (", two LoRA" if self.has_adapters else "")


@dataclass(frozen=True)
class BytesCase:
    """The byte fingerprint of a tower with about `mib` MiB in `tensors` weights, with N = `calls`."""

    mib: int
    tensors: int
    calls: int

    @property
    def name(self) -> str:
        """The size of the weights, and the calls that read all of them."""
        return f"{self.mib} MiB, N = {self.calls}"


CASES: dict[str, list[ChangeCase | BytesCase]] = {
    "full": [
        ChangeCase(400, target_us=TARGET_US),
        ChangeCase(400, has_adapters=True),
        ChangeCase(1500, target_us=TARGET_US),
        ChangeCase(1500, has_adapters=True),
        BytesCase(64, 400, 100),
    ],
    "smoke": [ChangeCase(14), ChangeCase(28, has_adapters=True), BytesCase(1, 14, 3)],
}


def make_session(model: ChangingModel) -> Session:
    """Return the session of an attachment to the model. Its cache stays empty."""
    from vitcache.adapters.session import Session

    cache = EmbeddingCache(WIDTH, dtype=torch.float32, device="cpu", device_bytes="64KiB")
    return Session(model, "visual", cache, Namespace("changes"), None, 0)


def run_case(case: ChangeCase | BytesCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    """Measure one case; yields a label before each part."""
    yield "model"
    if isinstance(case, BytesCase):
        yield from _measure_bytes(case, recorder, timer)
    else:
        yield from _measure_checks(case, recorder, timer)


def _measure_checks(case: ChangeCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    from vitcache.adapters.weights import WeightsFingerprint

    model = ChangingModel(case.tensors, WIDTH, has_adapters=case.has_adapters)
    session = make_session(model)
    native, python = WeightsFingerprint(model, model.visual), VersionsInPython(model)
    checks: dict[str, Callable[[], bool]] = {NATIVE: native.is_current, PYTHON: python.is_current}
    first = session.current_namespace()
    _expect(session.current_namespace() == first, VITCACHE, "a model that did not change")
    _expect(all(check() for check in checks.values()), "a check", "a model that did not change")
    model.write()
    _expect(session.current_namespace() != first, VITCACHE, CHANGED)
    for name, check in checks.items():
        _expect(not check(), name, CHANGED)
    native, python = WeightsFingerprint(model, model.visual), VersionsInPython(model)
    yield "checks in turns"
    samples = timer.rounds_us(
        {VITCACHE: session.current_namespace, NATIVE: native.is_current, PYTHON: python.is_current}, calls=9
    )
    for name, sample in samples.items():
        target = case.target_us if name == VITCACHE else None
        recorder.add(
            *(case.name, name, "check_us", "us", sample),
            against=(PYTHON, samples[PYTHON].value),
            target=target,
            limit=target,
        )
    changes = {CHANGED: model.write}
    if case.has_adapters:
        names = []
        for _ in range(3):
            names.append(session.current_namespace())
            model.switch_adapters()
        _expect(names[0] == names[2] != names[1], VITCACHE, SWITCHED)
        changes[SWITCHED] = model.switch_adapters
    yield "calls after changes"
    for name, change in changes.items():
        [sample] = timer.rounds_us(
            {VITCACHE: session.current_namespace}, calls=3, before={VITCACHE: change}
        ).values()
        recorder.add(case.name, name, "change_us", "us", sample, against=(VITCACHE, samples[VITCACHE].value))
    yield "steps of an optimizer"
    _measure_steps(case, model, session, recorder, timer)


def _measure_steps(
    case: ChangeCase, model: ChangingModel, session: Session, recorder: Recorder, timer: Timer
) -> None:
    """Measure a step of an optimizer that writes all weights of the tower, with and without our hook."""
    from vitcache.adapters.changes.optimizer_steps import unwatch_optimizers, watch_optimizers

    for weight in model.visual.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW(model.visual.parameters(), fused=True)
    samples = timer.rounds_us({STEP: optimizer.step})
    watch_optimizers(session)
    first = session.current_namespace()
    optimizer.step()
    _expect(session.current_namespace() != first, VITCACHE, "a step of a fused optimizer")
    samples |= timer.rounds_us({WATCHED: optimizer.step})
    unwatch_optimizers(session)
    for name, sample in samples.items():
        recorder.add(case.name, name, "step_us", "us", sample, against=(STEP, samples[STEP].value))


def _measure_bytes(case: BytesCase, recorder: Recorder, timer: Timer) -> Iterator[str]:
    from vitcache.adapters.changes.byte_fingerprint import ByteFingerprint
    from vitcache.adapters.changes.model_changes import logger
    from vitcache.adapters.changes.outer_modules import outer_weights

    model = ChangingModel(case.tensors, _width_for(case))
    session = make_session(model)
    session.state.bytes = ByteFingerprint(case.calls, model)
    first = session.current_namespace()
    model.weight.data.add_(1)
    logger.disabled = True  # its warning about this write
    found = [session.current_namespace() != first for _ in range(case.calls)]
    logger.disabled = False
    _expect(any(found), "the byte fingerprint", "a write through .data")
    weights = [weight.detach() for _, weight in outer_weights(model)]
    total = sum(weight.nbytes for weight in weights)

    def take() -> None:
        fingerprint.reset()
        fingerprint.check(session)

    fingerprint = session.state.bytes
    yield "checks and sums in turns"
    functions: dict[str, Callable[[], object]] = {
        CHECK: lambda: fingerprint.check(session),
        TAKE: take,
        SUM: lambda: [weight.sum() for weight in weights],
    }
    samples = timer.rounds_us(functions, calls=3)
    for name, sample in samples.items():
        moved = total // case.calls if name == CHECK else total
        recorder.add(
            *(case.name, name, "fingerprint_us", "us", sample),
            bytes_moved=moved,
            against=(SUM, samples[SUM].value),
        )


def _width_for(case: BytesCase) -> int:
    """Return the width at which the weights have about `case.mib` MiB of float32."""
    width = WIDTH
    blocks = case.tensors // 12
    while 4 * (6 * blocks + 1) * width**2 < case.mib << 20:
        width += WIDTH
    return width


def _expect(holds: bool, contender: str, state: str) -> None:
    if not holds:
        raise RuntimeError(f"{contender} is wrong about this state of the model: {state}: it gets no number")


def draw(rows: figures.Rows) -> Figure:
    """Draw microseconds: above, of the check of a call; below, after changes, and of checks of bytes."""
    checks = [row for row in rows if row["metric"] == "check_us"]
    rest = [row for row in rows if row["metric"] != "check_us"]
    cases = list(dict.fromkeys(row["case"] for row in checks))
    heights = 0.55 * len(cases), 0.3 * len(rest)
    figure, [[above], [below]] = figures.open_figure(2, 1, height=1.0 + sum(heights), height_ratios=heights)
    looks = figures.styles((VITCACHE, NATIVE, PYTHON, PLAIN))
    targets = {(row["case"], row["contender"]): row["target"] for row in checks if row["target"] is not None}
    above.set_xscale("log")
    figures.compare(above, checks, looks, unit=" us", targets=targets)
    figures.log_ticks(above)
    above.set(xlabel="check of a call (microseconds of the host; less is better)", ylabel="weights")
    below.set_xscale("log")
    for place, row in enumerate(rest):
        name = PLAIN if row["contender"] in (SUM, STEP) else VITCACHE
        figures.point(below, {**row, "contender": name}, place, looks[name], unit=" us")
    names = {
        STEP: "step",
        WATCHED: "watched step",
        CHANGED: "after a write",
        SWITCHED: "after a switch of adapters",
        CHECK: "check of bytes",
    }
    labels = [f"{names.get(row['contender'], row['contender'])}: {row['case']}" for row in rest]
    below.set_yticks(range(len(rest)), labels)
    below.set(ylim=(len(rest) - 0.5, -0.5), xlabel="microseconds of the host; less is better", ylabel="work")
    figures.log_ticks(below)
    verdicts = {True: " (within its target)", False: " (its target is missed)", None: ""}
    ours = [row for row in checks if row["contender"] == VITCACHE and "LoRA" not in row["case"]]
    sizes = [row["case"].replace("tensors", "weights") for row in ours]
    parts = [
        f"{row['value']:.1f} us for {size}{verdicts[row['meets_target']]}"
        for row, size in zip(ours, sizes, strict=True)
    ]
    title = f"A call notices changes of its model in {' and '.join(parts)}"
    note = (
        "versions in Python: the identity, version and address of each weight of the tower, not its settings "
        f"and hooks. Below: the first call after a change, and the checksums of bytes. {figures.SPREAD}"
    )
    return figures.finish(figure, rows, title, note)
