"""`EncoderRunner`: encodes missing items in micro-batches, and one by one after a failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from traceback import clear_frames
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from vitcache._native import Turn
from vitcache.cache.embedding_cache import EmbeddingCache
from vitcache.device.streams import record_event
from vitcache.pipeline.feature_mover import FeatureMover, UnmovedFeature
from vitcache.pipeline.items import Item
from vitcache.pipeline.rank_states import RankStates
from vitcache.pipeline.row_checks import check_encoded_rows
from vitcache.pipeline.step_item import State, StepItem
from vitcache.tracing import traced

# A feature is a tensor on the cache's device, or any object if the pipeline does not move it.
Encode = Callable[[list[Any], list[Item]], "Sequence[Tensor] | Tensor"]


T = TypeVar("T")


class EncoderRunner:
    """Runs the caller's encoder over step items, one call at a time.

    Parameters
    ----------
    encode
        As in `VisionPipeline`.
    max_rows
        Most rows of a micro-batch. An item with more rows is encoded alone.
    moves_features
        False: features reach the encoder unchanged. True: `Item.move_feature` says it for each item.
    ranks
        Shares failures with the other ranks before each call of the encoder; or None.

    Notes
    -----
    The encoder is called on the calling thread's current stream. A thread stays in `exclusive` from `run`
    until it has queued the work that places or stores the rows: the next call of the encoder may overwrite
    them.

    Attributes
    ----------
    turn
        The right to call the encoder. A call from inside the encoder that would wait for it raises
        RuntimeError.
    uses
        Streams and events behind the work of the last use of the encoder. The next use waits for them.
    """

    def __init__(
        self,
        encode: Encode,
        cache: EmbeddingCache,
        mover: FeatureMover,
        max_rows: int,
        moves_features: bool = True,
        ranks: RankStates | None = None,
        tenant: str = "",
    ) -> None:
        self._encode = encode
        self._cache = cache
        self._mover = mover
        self._max_rows = max_rows
        self.moves_features = moves_features
        self._ranks = ranks
        self._tenant = tenant
        self.turn = Turn("the pipeline's encoder")
        self.uses: list[Any] = []

    def exclusive(self, call: str, work: Callable[[], T]) -> T:
        """Own the encoder during a function: other threads block, and the stream waits for the last use.

        Parameters
        ----------
        call
            Name of the public call, for the message of the error.

        Raises
        ------
        RuntimeError
            If this thread, or a thread that waits for it, owns the encoder.
        """
        device = self._cache.device
        with self.turn.of(call):
            if device.type == "cuda":
                self._wait_for_last_use(device)
            try:
                return work()
            finally:
                if device.type == "cuda":
                    # A stream is here if an interrupt left the caller's stream without an order behind it.
                    self.uses = [record_event(device), *self.uses[1:]]

    def _wait_for_last_use(self, device: torch.device) -> None:
        """Let the current stream wait for the last use, and note that it uses the encoder now."""
        current = torch.cuda.current_stream(device)
        for use in self.uses:
            if isinstance(use, torch.cuda.Stream):
                current.wait_stream(use)
            else:
                current.wait_event(use)
        self.uses = [current]  # an event replaces it at the end, unless an interrupt prevents this

    def batches(self, step_items: Sequence[StepItem]) -> list[list[StepItem]]:
        """Split step items into micro-batches of at most `max_rows` rows, in order."""
        batches: list[list[StepItem]] = []
        rows_left = 0
        for step_item in step_items:
            if not batches or step_item.num_rows > rows_left:
                batches.append([])
                rows_left = self._max_rows
            batches[-1].append(step_item)
            rows_left -= step_item.num_rows
        return batches

    def run(self, step_items: Sequence[StepItem]) -> None:
        """Encode all step items; on return each one has `rows` or an `error`. Call it in `exclusive`.

        Each call of the encoder may overwrite the rows of the previous call. So the rows of every micro-batch
        but the last are written to reserved pages, or copied if the cache rejects them. The rows of the last
        micro-batch stay in the encoder's memory.
        """
        batches = self.batches(step_items)
        fresh: list[StepItem] = []
        self.start(batches[0] if batches else [])
        expected = [step_item for step_item in step_items if step_item.claim is not None]
        self._cache.expect(
            [step_item.num_rows for step_item in expected],
            row_width=[step_item.row_width for step_item in expected],
        )
        for number, batch in enumerate(batches):
            # The next features are copied to the device while this micro-batch is encoded. If the ring does
            # not have enough free bytes for a feature now, its copy is queued after the call of the encoder:
            # the host does not wait for a slot before that call.
            self.start(batch)
            self.start_ahead(batches[number + 1] if number + 1 < len(batches) else [])
            self.store_fresh(fresh)
            if self._ranks is not None:
                self._ranks.fail_alike(batch)
            fresh = self._run_batch([step_item for step_item in batch if step_item.state is not State.FAILED])
            for step_item in batch:
                step_item.feature = step_item.moved = None

    def encode_once_more(self, step_item: StepItem) -> Tensor:
        """Encode a hit again, in its own call; return its rows in the encoder's memory. Call in `exclusive`.

        Raises
        ------
        Exception
            If the item cannot be loaded, copied or encoded.
        """
        self.start([step_item])
        if step_item.failure is None:
            [rows] = self._call([step_item])
            self._accept_rows(step_item, rows)
        if step_item.failure is not None:
            raise step_item.failure.error
        return cast("Tensor", step_item.rows)

    def start(self, step_items: Sequence[StepItem]) -> None:
        """Load features, and start to move them to the device; an exception becomes the item's error."""
        for step_item in step_items:
            self._start(step_item)

    def start_ahead(self, step_items: Sequence[StepItem]) -> bool:
        """Start features in order, as `start`, up to the first one for which the host would wait for slots.

        Returns
        -------
        bool
            Whether all features were started.
        """
        return all(self._start(step_item, may_wait=False) for step_item in step_items)

    def _start(self, step_item: StepItem, *, may_wait: bool = True) -> bool:
        """Start to move one feature. False: the host would have to wait, and `may_wait` is false."""
        if step_item.moved is None and step_item.state is not State.FAILED:
            try:
                feature = step_item.load()
                # Read after `load`, which may replace the item by an equal item.
                if not (self.moves_features and step_item.item.move_feature):
                    step_item.take_moved(UnmovedFeature(feature))
                elif may_wait or self._mover.has_free_bytes(feature):
                    step_item.take_moved(self._mover.start(feature))
                else:
                    return False
            except Exception as error:
                step_item.fail(error)
        return True

    def _run_batch(self, step_items: list[StepItem]) -> list[StepItem]:
        """Encode a micro-batch; return the step items whose rows are in the encoder's memory."""
        outputs: list[Any] | None = None
        try:
            outputs = self._call(step_items) if step_items else []
        except Exception as error:
            # The traceback keeps the encoder's tensors alive, and the next encode may need their memory.
            clear_frames(error.__traceback__)
            if len(step_items) == 1:
                step_items[0].fail(error)
                return []
        if outputs is None:
            return self._run_alone(step_items)
        for step_item, rows in zip(step_items, outputs, strict=True):
            self._accept_rows(step_item, rows)
        return [step_item for step_item in step_items if step_item.state is not State.FAILED]

    def _run_alone(self, step_items: list[StepItem]) -> list[StepItem]:
        """Encode the items of a failed micro-batch one by one, so that only faulty items fail."""
        fresh: list[StepItem] = []
        for step_item in step_items:
            self.store_fresh(fresh)
            fresh = self._run_batch([step_item])
        return fresh

    @traced("encode")
    def _call(self, step_items: list[StepItem]) -> list[Any]:
        features = [step_item.moved.ready() for step_item in step_items if step_item.moved is not None]
        items = [step_item.item for step_item in step_items]
        times = self._cache.encode_times
        if times is None:
            outputs: Any = self._encode(features, items)
        else:
            start = times.start()
            outputs = self._encode(features, items)
            widths = {step_item.row_width for step_item in step_items}
            if len(widths) == 1:  # else the time cannot be divided
                times.stop(start, sum(step_item.num_rows for step_item in step_items), widths.pop())
        counts = [step_item.num_rows for step_item in step_items]
        if isinstance(outputs, Tensor):
            if len(step_items) == 1:
                return [outputs.detach()]
            found = sorted({step_item.row_width for step_item in step_items})
            if len(found) > 1:
                raise ValueError(
                    f"encode must return one tensor per item for rows of widths {found}, got one tensor"
                )
            if outputs.dim() != 2 or len(outputs) != sum(counts):
                shape, total = tuple(outputs.shape), sum(counts)
                raise ValueError(
                    f"encode must return {total} rows for {len(counts)} items, got a tensor of shape {shape}"
                )
            return list(outputs.detach().split(counts))
        if not isinstance(outputs, list | tuple):
            raise TypeError(f"encode must return tensors, got {type(outputs).__name__}")
        rows: list[Any] = list(outputs)
        if len(rows) != len(counts):
            raise ValueError(f"encode must return {len(counts)} tensors, one per item, got {len(rows)}")
        return rows

    def _accept_rows(self, step_item: StepItem, rows: Any) -> None:
        """Check the rows that the encoder returned for an item, and store them or an error."""
        try:
            checked = check_encoded_rows(rows, step_item.row_width, self._cache.device)
        except Exception as error:
            step_item.fail(error)
            return
        if len(checked) == step_item.num_rows:
            step_item.set(State.FRESH, checked)
        else:
            message = f"encode must return {step_item.num_rows} rows for the item, got {len(checked)}"
            step_item.fail(ValueError(message), len(checked))

    def store_fresh(self, step_items: Sequence[StepItem]) -> None:
        """Write rows from the encoder's memory to reserved pages, or copy them if the cache rejects them.

        If a copy fails, for example because memory is exhausted, its item fails.
        """
        for step_item in step_items:
            rows = step_item.rows
            if step_item.state is State.FRESH and isinstance(rows, Tensor) and step_item.claim is not None:
                reservation = step_item.claim.reserve(
                    step_item.num_rows,
                    row_width=step_item.row_width,
                    tenant=step_item.tenant(self._tenant),
                )
                try:
                    if reservation is None:
                        step_item.set(State.COPIED, rows.to(self._cache.dtype, copy=True))
                    else:
                        step_item.set(State.STORED, reservation)  # first: after an interrupt it is cancelled
                        reservation.write_checked(rows)
                except Exception as error:
                    if reservation is not None:
                        reservation.cancel()
                    step_item.fail(error)
