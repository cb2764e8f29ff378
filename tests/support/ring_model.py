"""What the bytes of a ring are used for, in Python: slots in order, none over another."""

from __future__ import annotations

from collections import deque

ALIGNMENT = 256


class RingModel:
    """Slots as ``[claim, end, over]``: bytes since the ring was made, and whether the copy is over."""

    def __init__(self, capacity: int, piece: int) -> None:
        self.capacity = capacity
        self.piece = piece
        self.slots: deque[list[int]] = deque()
        self.next_byte = 0
        self.held = False

    def copy(self, num_bytes: int, *, over: bool) -> bool:
        """Whether there is room for every piece, which may be over at once; pieces before one without room
        stay.
        """
        return all(
            self._reserve(min(self.piece, num_bytes - first), over)
            for first in range(0, num_bytes, self.piece)
        )

    def settle(self) -> None:
        """All copies are over."""
        for slot in self.slots:
            slot[2] = True

    def retire(self) -> None:
        while self._retire_one():
            pass

    @property
    def used(self) -> int:
        return self.next_byte - self.slots[0][0] if self.slots else 0

    def _reserve(self, num_bytes: int, over: bool) -> bool:
        length = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        while True:
            begin = self.next_byte
            if begin % self.capacity + length > self.capacity:
                begin = -(-begin // self.capacity) * self.capacity
            claim = self.next_byte if self.slots else begin
            oldest = self.slots[0][0] if self.slots else claim
            if begin + length - oldest <= self.capacity:
                self.slots.append([claim, begin + length, over])
                self.next_byte = begin + length
                return True
            if not self._retire_one():
                return False

    def _retire_one(self) -> bool:
        if not self.slots or self.held or not self.slots[0][2]:
            return False
        self.slots.popleft()
        return True
