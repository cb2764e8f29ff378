"""`FeatureBatches`: micro-batches of vLLM's items, whose features cross PCIe through a pinned ring."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitcache.adapters.vllm.field_copies import FieldCopies
from vitcache.pipeline.feature_mover import FeatureMover
from vitcache.ring.pinned_ring import PinnedRing

# Encodes the items of one micro-batch: their modality, their number, and the arguments of `embed_multimodal`.
# Returns one tensor per item.
Encode = Callable[[str, int, "dict[str, Any]"], Sequence[Tensor]]


class MicroBatch(NamedTuple):
    """The items of one call of the encoder: their positions among all items, and its arguments by name."""

    positions: list[int]
    modality: str
    fields: dict[str, FieldCopies]

    def start(self, *, is_ahead: bool = False) -> None:
        """Queue the copies of all fields, as `FieldCopies.start`."""
        for field in self.fields.values():
            field.start(is_ahead=is_ahead)

    def take(self) -> dict[str, Any]:
        """Let the current stream wait for the copies, and return the encoder's arguments."""
        return {key: field.take() for key, field in self.fields.items()}


class FeatureBatches:
    """Encodes items of vLLM in micro-batches, and copies the next features while the encoder runs.

    The encoder's arguments are, bit for bit, those of vLLM's `group_and_batch_mm_kwargs` for the items of the
    micro-batch. vLLM would copy all features of the step on the encoder's stream, from memory that it pins
    anew.

    Parameters
    ----------
    device
        Device of the encoder.
    ring
        The ring that features in host memory pass, of this device. None: vLLM copies the features.
    max_rows
        Most rows of a micro-batch. An item with more rows is encoded alone.

    Raises
    ------
    ImportError
        If the installed vLLM lacks the rule by which it groups items.

    Notes
    -----
    Only the worker's thread may call. The caller closes the ring.
    """

    def __init__(self, device: torch.device, ring: PinnedRing | None, max_rows: int = 4096) -> None:
        from vllm.multimodal.utils import _can_batch_mm_items
        from vllm.utils.torch_utils import PIN_MEMORY

        self._device = device
        self._mover = None if ring is None else FeatureMover(device, ring, None)
        self._max_rows = max_rows
        self._can_batch: Callable[[Any, Any], bool] = _can_batch_mm_items
        self._pin_memory: bool = PIN_MEMORY

    def run(
        self, mm_kwargs: Sequence[tuple[str, Any]], num_rows: Sequence[int], encode: Encode
    ) -> Iterator[tuple[list[int], Sequence[Tensor]]]:
        """Encode items; yield the positions of each micro-batch in `mm_kwargs`, and the outputs of `encode`.

        Micro-batches are ordered by modality, as in vLLM. Before `encode` is called, the current stream waits
        for the features, and the features of the next micro-batch are queued as far as the ring has free
        bytes. The rest is queued when the caller asks for the next micro-batch. All of it runs on the
        caller's current stream, which must not change; only the copies run on the ring's.

        Parameters
        ----------
        mm_kwargs
            Modality and `MultiModalKwargsItem` of each item.
        num_rows
            Number of rows of each item.
        encode
            Called with a modality, a number of items and the encoder's arguments.

        Raises
        ------
        ValueError
            If `mm_kwargs` and `num_rows` have different lengths.
        Exception
            If `encode` raises or a copy fails. No further micro-batch is encoded then. Copies that are queued
            complete, and their slots retire.
        """
        batches = deque(self._micro_batches(mm_kwargs, num_rows))
        while batches:
            batch = batches.popleft()
            batch.start()
            if batches:
                batches[0].start(is_ahead=True)
            # No name refers to the arguments or the outputs while the caller uses the outputs.
            yield batch.positions, encode(batch.modality, len(batch.positions), batch.take())

    def _micro_batches(
        self, mm_kwargs: Sequence[tuple[str, Any]], num_rows: Sequence[int]
    ) -> Iterator[MicroBatch]:
        if len(mm_kwargs) != len(num_rows):
            raise ValueError(f"{len(mm_kwargs)} items have {len(num_rows)} numbers of rows")
        modalities = [modality for modality, _ in mm_kwargs]

        def can_batch(left: int, right: int) -> bool:
            return self._can_batch(mm_kwargs[left][1], mm_kwargs[right][1])

        for positions in group_positions(modalities, num_rows, self._max_rows, can_batch):
            items = [mm_kwargs[position][1] for position in positions]
            fields = {
                key: FieldCopies([item[key] for item in items], self._device, self._mover, self._pin_memory)
                for key in items[0]
            }
            yield MicroBatch(positions, modalities[positions[0]], fields)


def group_positions(
    modalities: Sequence[str],
    num_rows: Sequence[int],
    max_rows: int,
    can_batch: Callable[[int, int], bool],
) -> list[list[int]]:
    """Split items into micro-batches, and return the positions of each.

    Positions are sorted by modality, and keep their order within it. Each micro-batch has one modality and at
    most `max_rows` rows, or one item with more rows.

    Parameters
    ----------
    can_batch
        Whether one call can encode two items, given by their positions. Called for adjacent items of one
        modality.
    """
    batches: list[list[int]] = []
    rows_left = 0
    for position in sorted(range(len(modalities)), key=modalities.__getitem__):
        last = batches[-1][-1] if batches else position
        fits = bool(batches) and modalities[last] == modalities[position] and num_rows[position] <= rows_left
        if not fits or not can_batch(last, position):
            batches.append([])
            rows_left = max_rows
        batches[-1].append(position)
        rows_left -= num_rows[position]
    return batches
