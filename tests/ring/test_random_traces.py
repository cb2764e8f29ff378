"""Random traces of a ring on the stand-in, compared with a model. Rules pause and resume the streams."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ring_model import RingModel
from rings import copies_in_flight

from vitcache import PinnedRing
from vitcache.testing.stand_in import pause, reset

CAPACITY, PIECE = 1 << 14, 1 << 11


class RingTrace(RuleBasedStateMachine):
    """Copies, pauses and holds. After each rule the ring's used bytes and slots equal the model's."""

    @initialize()
    def begin(self) -> None:
        reset()
        self.ring = PinnedRing(CAPACITY, num_threads=2, backend="host", piece_bytes=PIECE)
        self.model = RingModel(CAPACITY, PIECE)
        self.copies: list = []
        self.paused = False
        self.hold = None

    @rule(num_bytes=st.integers(0, 2 * CAPACITY) | st.sampled_from([PIECE - 1, PIECE, PIECE + 1, CAPACITY]))
    def copy(self, num_bytes: int) -> None:
        src = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8)
        dst = torch.zeros_like(src)
        # A copy that is larger than the ring must wait for its own first pieces, which then complete.
        may_wait = not self.paused and not self.model.on_hold
        if self.model.copy(num_bytes, is_complete=not self.paused):
            self.copies.append((self.ring.copy_to(dst, src, timeout_s=None if may_wait else 0), src, dst))
        else:
            with pytest.raises(TimeoutError, match="timed out while waiting for"):
                self.ring.copy_to(dst, src, timeout_s=0)
        if not self.paused:
            self.settle()

    @precondition(lambda self: not self.paused)
    @rule()
    def pause_streams(self) -> None:
        self.settle()
        pause(True)
        self.paused = True

    @precondition(lambda self: self.paused)
    @rule()
    def resume_streams(self) -> None:
        pause(False)
        self.paused = False
        self.settle()

    @precondition(lambda self: self.hold is None)
    @rule()
    def begin_hold(self) -> None:
        self.hold = self.ring.hold()
        self.hold.__enter__()
        self.model.on_hold = True

    @precondition(lambda self: self.hold is not None)
    @rule()
    def end_hold(self) -> None:
        self.hold.__exit__(None, None, None)
        self.hold = None
        self.model.on_hold = False

    @invariant()
    def ring_agrees_with_the_model(self) -> None:
        if hasattr(self, "ring"):
            self.ring.check_integrity()
            stats = self.ring.stats()
            self.model.retire()
            assert (stats.used_bytes, stats.num_slots) == (self.model.used, len(self.model.slots))

    def settle(self) -> None:
        """Wait for all copies, and for the queued pieces of copies that timed out."""
        for ticket, src, dst in self.copies:
            ticket.synchronize()
            assert torch.equal(src, dst)
        self.copies = []
        while copies_in_flight(self.ring):
            self.ring.check_integrity()
        self.model.settle()

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            pause(False)
            self.settle()
            self.ring.close()


TestRingTrace = RingTrace.TestCase
TestRingTrace.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
