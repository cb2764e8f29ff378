"""Saves, loads and reads of steps that the workers have not reported yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from vitcache.adapters.vllm.orders import ItemKey

# vLLM has two steps in flight, or one per pipeline stage: no report is later than this number of steps.
MOST_STEPS = 256


class StepsInFlight:
    """The saves, loads and reads of steps without a report."""

    def __init__(self) -> None:
        self._saves: dict[int, dict[ItemKey, None]] = {}
        self._loads: dict[int, dict[str, set[str]]] = {}
        self._readers: deque[tuple[int, set[str]]] = deque(maxlen=MOST_STEPS)
        self._first = 0  # step since the last reset: it and later ones read other rows than earlier ones

    def reset(self, step: int) -> None:
        """Note that all rows are dropped before a step. The earlier steps keep their requests."""
        self._first = step

    def add_save(self, step: int, key: ItemKey) -> None:
        """Note that a step saves an entry."""
        self._saves.setdefault(step, {})[key] = None

    def cancel_save(self, step: int, key: ItemKey) -> None:
        """Note that a step does not save an entry after all."""
        self._saves[step].pop(key, None)

    def add_load(self, step: int, identifier: str, request_id: str) -> None:
        """Note that a step loads an item for a request."""
        self._loads.setdefault(step, {})[identifier] = {request_id}

    def cancel_load(self, step: int, identifier: str) -> None:
        """Note that a step does not load an item after all."""
        self._loads[step].pop(identifier, None)

    def add_reader(self, step: int, identifier: str, request_id: str) -> None:
        """Note that a step reads cached rows for a request, which may be rows that are being loaded."""
        if not self._readers or self._readers[-1][0] != step:
            self._readers.append((step, set()))
        self._readers[-1][1].add(request_id)
        for each, loads in self._loads.items():
            if each >= self._first and identifier in loads:
                loads[identifier].add(request_id)

    def take_saves(self, step: int) -> Iterator[tuple[int, ItemKey]]:
        """Yield and forget the saves up to a step, each with its step."""
        for each in [each for each in self._saves if each <= step]:
            for key in self._saves.pop(each):
                yield each, key

    def take_loads(self, step: int) -> Iterator[tuple[str, set[str]]]:
        """Yield and forget the loads up to a step, each with the requests that use it."""
        for each in [each for each in self._loads if each <= step]:
            yield from self._loads.pop(each).items()

    def readers_since(self, step: int) -> set[str]:
        """Return the requests for which a step, or a later one up to a reset, reads cached or loaded rows."""
        readers = [(each, names) for each, names in self._readers if each >= step]
        if step < self._first:
            readers = [(each, names) for each, names in readers if each < self._first]
        return {name for _, names in readers for name in names}
