"""A model of a ring's bytes in Python: slots are reserved and retire in order, and never overlap."""

from __future__ import annotations

from collections import deque

ALIGNMENT = 256


class RingModel:
    """Slots as ``[reserved_begin, end, is_complete]``; bytes are numbered from the ring's construction."""

    def __init__(self, capacity: int, piece: int) -> None:
        self.capacity = capacity
        self.piece = piece
        self.slots: deque[list[int]] = deque()
        self.next_byte = 0
        self.on_hold = False

    def copy(self, num_bytes: int, *, is_complete: bool) -> bool:
        """Reserve a slot for each piece; return whether every piece got a slot.

        If a piece gets no slot, the earlier pieces keep their slots. If `is_complete`, each piece is complete
        immediately, else at the next `settle`.
        """
        return all(
            self._reserve(min(self.piece, num_bytes - first), is_complete)
            for first in range(0, num_bytes, self.piece)
        )

    def settle(self) -> None:
        """Make all copies complete."""
        for slot in self.slots:
            slot[2] = True

    def retire(self) -> None:
        while self._retire_oldest():
            pass

    @property
    def used(self) -> int:
        return self.next_byte - self.slots[0][0] if self.slots else 0

    def _reserve(self, num_bytes: int, is_complete: bool) -> bool:
        length = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        while True:
            begin = self.next_byte
            if begin % self.capacity + length > self.capacity:
                begin = -(-begin // self.capacity) * self.capacity
            reserved_begin = self.next_byte if self.slots else begin
            oldest = self.slots[0][0] if self.slots else reserved_begin
            if begin + length - oldest <= self.capacity:
                self.slots.append([reserved_begin, begin + length, is_complete])
                self.next_byte = begin + length
                return True
            if not self._retire_oldest():
                return False

    def _retire_oldest(self) -> bool:
        if not self.slots or self.on_hold or not self.slots[0][2]:
            return False
        self.slots.popleft()
        return True
