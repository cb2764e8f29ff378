"""Steps of optimizers: an attachment forgets its entries after a step that can write its weights.

Fused optimizers do not increment the version of a weight, so only the step itself shows the change.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from vitcache.adapters.changes.model_changes import INVALIDATED, OPTIMIZER, TRAINING
from vitcache.adapters.changes.weight_index import WeightIndex
from vitcache.adapters.session import Session
from vitcache.device.locks import new_lock

# Of these, each training step may have one. They neither replace a weight nor its memory.
_KINDS_OF_STEPS = (OPTIMIZER, TRAINING, INVALIDATED)


class _OuterWeights:
    """The weights of one session outside of its language model, read again after a change of other kinds.

    A change that the session has not noticed yet may be missing. The session notices it at its next call, and
    then forgets its entries by itself.
    """

    def __init__(self) -> None:
        self._known: tuple[int, WeightIndex] | None = None

    def index(self, session: Session) -> WeightIndex:
        counts = session.changes.counts
        changes = sum(number for kind, number in counts.items() if kind not in _KINDS_OF_STEPS)
        known = self._known  # the number of changes is read before the weights
        if known is None or known[0] != changes:
            known = self._known = changes, WeightIndex(session.model)
        return known[1]


# Each access is one operation of a dict. So no lock is needed, which a callback of the garbage collector
# could wait for in the thread that holds it.
_watched: dict[ref[Session], _OuterWeights] = {}
_registering = new_lock()
_registered: object | None = None  # names the pair of hooks in use


def watch_optimizers(session: Session) -> None:
    """Let a session forget its entries after each step of an optimizer that can write its vision weights.

    The step counts if the optimizer holds a weight outside of the language model, or a tensor with bytes of
    one, that requires gradients or has one. The session is referenced weakly, and no optimizer or weight is
    referenced at all. Any thread may call it.

    The hooks of torch run in the thread that calls `Optimizer.step`: a thread of the user or, if the backward
    pass runs the optimizer, a thread of autograd. They queue no work on a device, and never raise.

    The first call registers one pair of hooks for the process, which stays registered. If a hook were removed
    while another thread runs the hooks of a step, that step would raise RuntimeError. Hooks of a call that an
    interrupt ended stay, too, and do nothing: the next call registers another pair.
    """
    global _registered
    _watched[ref(session, lambda freed: _watched.pop(freed, None))] = _OuterWeights()
    with _registering:
        if _registered is None:
            pair = object()
            register_optimizer_step_pre_hook(partial(_before_step, pair))
            register_optimizer_step_post_hook(partial(_after_step, pair))
            _registered = pair


def unwatch_optimizers(session: Session) -> None:
    """End `watch_optimizers`. A session that is not watched is ignored. Any thread may call it."""
    _watched.pop(ref(session), None)


@torch.compiler.disable  # in a compiled step, too, the hooks run as they are
def _before_step(pair: object, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Begin a new namespace: after a step that raises, or is interrupted, torch calls no hook."""
    if pair is _registered:
        for session, _ in _affected(optimizer):
            session.begin_namespace()


@torch.compiler.disable
def _after_step(pair: object, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forget, also the rows that another thread encoded during the step."""
    if pair is _registered:
        for session, name in _affected(optimizer):
            session.forget(OPTIMIZER, name)


def _affected(optimizer: Optimizer) -> Iterator[tuple[Session, str]]:
    """Yield the watched sessions whose weights the optimizer can write, each with the name of a weight."""
    for watched, weights in _watched.copy().items():
        session = watched()
        if session is None:
            continue
        try:
            name = weights.index(session).find(_stepped(optimizer))
        except Exception as error:
            # Another thread may change the model, and the groups of an optimizer may have any form.
            name = f"{type(optimizer).__name__}, whose weights are unknown: {error}"
        if name is not None:
            yield session, name


def _stepped(optimizer: Optimizer) -> list[Tensor]:
    """Return the tensors that a step may have written."""
    stepped: list[Tensor] = []
    for group in optimizer.param_groups:
        tensors = group["params"]
        if not isinstance(tensors, list | tuple):  # to iterate over an iterator would empty it
            raise TypeError(f"params is a {type(tensors).__name__}")
        stepped += [each for each in tensors if each.requires_grad or each.grad is not None]
    return stepped
