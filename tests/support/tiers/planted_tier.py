"""`PlantedTier`: a tier in memory that fails, writes late, blocks or returns wrong bytes when a test asks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitcache.tiers import EntryName, FetchOutcome, MemoryTier, Transfer


class Pause:
    """Blocks one call. `started` is set when the call is there; `release` lets it continue."""

    def __init__(self) -> None:
        self.started, self._released = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.started.set()
        self._released.wait()

    def release(self) -> None:
        self._released.set()


class PlantedTier:
    """A `MemoryTier` with planted faults. Tests plant them from any thread, before the call.

    Attributes
    ----------
    inner
        The tier that keeps the entries.
    calls
        Number of calls by method.
    threads
        Idents of the threads that called a method.
    """

    name = "planted"
    worth: float | None = None

    def __init__(self, max_bytes: int = 1 << 20) -> None:
        self.inner = MemoryTier(max_bytes)
        self.capacity_bytes = max_bytes
        self.calls: Counter[str] = Counter()
        self.threads: set[int] = set()
        self._faults: dict[tuple[str, int], Callable[[], None]] = {}
        self._outcomes: dict[int, FetchOutcome] = {}
        self._late: list[np.ndarray] = []
        self._memory: list[tuple[int, int]] = []

    def fail(self, method: str, error: Exception, nth: int = 1) -> None:
        """Raise in the nth call of a method from now on."""

        def fault() -> None:
            raise error

        self._plant(method, nth, fault)

    def pause(self, method: str, nth: int = 1) -> Pause:
        """Block the nth call of a method from now on, before it does anything."""
        pause = Pause()
        self._plant(method, nth, pause.wait)
        return pause

    def _plant(self, method: str, nth: int, fault: Callable[[], None]) -> None:
        self._faults[method, self.calls[method] + nth] = fault

    def return_unsafe(self, nth: int = 1) -> None:
        """The nth fetch from now on returns UNSAFE for its first entry, whose parts `write_late` writes."""
        self._outcomes[self.calls["fetch"] + nth] = FetchOutcome.UNSAFE

    def return_damaged(self, nth: int = 1) -> None:
        """The nth fetch from now on writes wrong bytes, and returns DAMAGED for its first entry."""
        self._outcomes[self.calls["fetch"] + nth] = FetchOutcome.DAMAGED

    def write_late(self, value: int = 0xEE) -> int:
        """Write the parts of unsafe fetches, as an engine may until `close`. Return the number of bytes."""
        for part in self._late:
            part[:] = value
        return sum(part.size for part in self._late)

    def register(self, *memory: np.ndarray) -> None:
        """Accept only parts in registered memory from now on, until `close`."""
        self._enter("register")
        self.inner.register(memory[0])
        for array in memory:
            start = array.__array_interface__["data"][0]
            self._memory.append((start, start + array.nbytes))

    def _enter(self, method: str) -> int:
        self.threads.add(threading.get_ident())
        self.calls[method] += 1
        number = self.calls[method]
        if fault := self._faults.pop((method, number), None):
            fault()
        return number

    def _check_memory(self, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            for part in transfer.parts:
                start = part.__array_interface__["data"][0]
                if self._memory and not any(
                    first <= start and start + part.nbytes <= last for first, last in self._memory
                ):
                    raise ValueError(f"memory at {start:#x} is not registered")

    def open(self) -> None:
        self._enter("open")
        self.inner.open()

    def exists(self, names: Sequence[EntryName]) -> list[bool]:
        self._enter("exists")
        return self.inner.exists(names)

    def fetch(self, fetches: Sequence[Transfer]) -> list[FetchOutcome]:
        number = self._enter("fetch")
        self._check_memory(fetches)
        outcomes = self.inner.fetch(fetches)
        planted = self._outcomes.pop(number, None)
        if planted is not None and fetches:
            outcomes[0] = planted
            for part in fetches[0].parts:
                part[:] = 0xEE
            if planted is FetchOutcome.UNSAFE:
                self._late += fetches[0].parts
            else:
                name = fetches[0].name
                self.inner.erase(tenant=name.tenant, key=name.key)
        return outcomes

    def store(self, stores: Sequence[Transfer]) -> list[bool]:
        self._enter("store")
        self._check_memory(stores)
        return self.inner.store(stores)

    def claim(self, names: Sequence[EntryName], ttl_s: float) -> list[bool]:
        self._enter("claim")
        return self.inner.claim(names, ttl_s)

    def erase(self, *, tenant: bytes | None = None, key: bytes | None = None) -> int:
        self._enter("erase")
        return self.inner.erase(tenant=tenant, key=key)

    def generation(self, weights: bytes) -> int:
        self._enter("generation")
        return self.inner.generation(weights)

    def revoke(self, weights: bytes) -> int:
        self._enter("revoke")
        return self.inner.revoke(weights)

    def metrics(self) -> Mapping[str, int]:
        self._enter("metrics")
        return self.inner.metrics()

    def close(self) -> None:
        self._enter("close")
        self._memory.clear()
        self._late.clear()  # the barrier: later, `write_late` writes nothing
        self.inner.close()

    def __repr__(self) -> str:
        return f"<PlantedTier {dict(self.calls)}>"


def closed(tier: Any) -> Any:
    """Open and close a tier, and return it."""
    tier.open()
    tier.close()
    return tier
