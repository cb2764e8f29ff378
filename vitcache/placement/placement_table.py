"""A placement at a fixed address, which a captured CUDA graph reads at each replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitcache.arguments import to_device, to_int
from vitcache.device.streams import Event, check_current_stream, is_capturing
from vitcache.handles import describe_count, described, refuse_copies
from vitcache.pages.reservation import Reservation
from vitcache.placement.call_checks import check_scale
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.placement.runs import check_lists
from vitcache.placement.table_memory import table_memory_of
from vitcache.rows import KINDS, check_dtype

# int64 values for the level tables of captured calls: two per deepstack level.
LEVEL_VALUES = 1 << 13


class PlacementTable:
    """A placement that a captured CUDA graph reads at each replay, and that changes between replays.

    Call `update`. Capture `scatter_embeddings` or `embed_tokens` with the table as `embeddings` and None as
    `spans`. Then call `update` before each replay. A call outside of a graph, or on the CPU, accepts a table,
    too.

    Parameters
    ----------
    max_rows
        Largest number of rows of a placement, and of tokens in a call of `embed_tokens` with this table.
    dtype
        Dtype of the rows: float32, float16 or bfloat16.
    device
        Device of the destination. None: the current CUDA device, or the CPU if CUDA is not available.

    Raises
    ------
    ValueError
        If `max_rows` is less than 1.
    TypeError
        If `max_rows` is not an int, or is a bool; if `dtype` is not float32, float16 or bfloat16.

    Notes
    -----
    Use a table from one thread at a time. The graph reads the rows when it runs. The work that writes the
    rows must therefore be ordered before the replay, and a lease in the table must not be released until the
    last replay that reads it is complete. The table keeps its tensors alive until the next `update`. The
    table must outlive the graphs that captured it. A call that reads the table is refused on
    cudaStreamPerThread.

    Examples
    --------
    >>> import torch
    >>> from vitcache import PlacementTable, scatter_embeddings
    >>> table = PlacementTable(max_rows=4, dtype=torch.float32, device="cpu")
    >>> for start in (0, 2):
    ...     table = table.update([torch.ones(1, 2)], [start])
    ...     print(scatter_embeddings(torch.zeros(3, 2), table, None).tolist())
    [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    """

    def __init__(
        self, max_rows: int, *, dtype: torch.dtype = torch.bfloat16, device: torch.device | str | None = None
    ) -> None:
        max_rows = to_int("max_rows", max_rows, 1)
        if dtype not in KINDS:
            raise TypeError(f"dtype is {dtype}, it must be float32, float16 or bfloat16")
        self.max_rows = max_rows
        self.dtype = dtype
        self.device = to_device(device)
        pinned = self.device.type == "cuda"
        # A tensor that is made in inference mode cannot be written outside of it.
        with torch.inference_mode(False):
            self.rows, self._tokens, self._level_tables = (
                torch.zeros(size, dtype=torch.int64, device="cpu", pin_memory=pinned)
                for size in (2 * max_rows, max_rows, LEVEL_VALUES)
            )
        # Events behind the reads of the table, by stream handle, or by a new object for each captured call.
        self._fences: dict[object, Any] = {}
        self._placement: Placement | None = None
        self._width = 0  # row width; 0 until it is known
        self._num_tokens: int | None = None  # tokens of the smallest destination so far
        self._num_embedded = 0  # most tokens of an embed_tokens call so far
        # The level tables of captured calls with a list of levels: each replay reads them.
        self._level_addresses: dict[tuple[tuple[int, int], ...], int] = {}
        self._num_level_values = 0

    def update(self, embeddings: Any, spans: Any) -> PlacementTable:
        """Replace the placement. Returns the table itself.

        Parameters
        ----------
        embeddings, spans
            As in `scatter_embeddings`, but without a `Reservation` and without a table.

        Raises
        ------
        RuntimeError
            If a replay or a call that reads the table is in flight. If a CUDA graph is being captured, and
            the table was read before.
        ValueError
            If there are more than `max_rows` rows. If their width differs from that of the earlier rows. If
            the bytes of a row are a multiple of 16, but its address is not. If a tensor requires grad and
            gradients are enabled.
        TypeError
            If the rows are not of the table's dtype, or an entry of `embeddings` is a `Reservation`.
        IndexError, ValueError, TypeError, RuntimeError
            As in `scatter_embeddings`, for the smallest destination that the table was used with so far.

        Notes
        -----
        If `update` raises, the table keeps its earlier placement. The host writes the table and does not wait
        for the device.
        """
        self._check_no_reader_in_flight()
        if not isinstance(embeddings, Tensor):
            check_lists(embeddings, spans)
        items = [embeddings] if isinstance(embeddings, Tensor) else embeddings
        width = self._width or (_width_of(items[0]) if items else 0)
        destination = Destination.unbound(width, self.device, self._num_tokens)
        placement = Placement(destination, embeddings, spans)
        if any(isinstance(item, Reservation) for item in placement.items):
            raise TypeError(
                "a PlacementTable cannot contain a Reservation: commit it, and pass a lease of its rows"
            )
        kind = KINDS[self.dtype]
        if torch.is_grad_enabled() and any(
            isinstance(item, Tensor) and item.requires_grad for item in placement.items
        ):
            raise ValueError("a PlacementTable records no gradients: use torch.no_grad()")
        wrong_dtypes = [dtype for dtype in placement.dtypes() if dtype != self.dtype]
        if wrong_dtypes:
            raise TypeError(f"the rows are {wrong_dtypes[0]}, the table's dtype is {self.dtype}")
        num_rows = placement.native.num_rows(kind)
        if num_rows > self.max_rows:
            raise ValueError(f"the placement has {num_rows} rows, the table's max_rows is {self.max_rows}")
        if width * self.dtype.itemsize % 16 == 0 and not placement.native.aligned(kind):
            raise ValueError("rows in a table must begin at multiples of 16 bytes")
        placement.use_leases()
        placement.check_memory(destination)
        if self._num_embedded:
            placement.native.write_token_table(kind, self._tokens.data_ptr(), self._num_embedded)
        self.rows.zero_()
        placement.native.write_row_table(kind, self.rows.data_ptr())
        self._placement, self._width = placement, width
        return self

    def warm_up(
        self,
        inputs_embeds: Tensor,
        *,
        deepstack: Tensor | Sequence[Tensor] | None = None,
        weight: Tensor | None = None,
        scale: float | None = None,
        text_scale: float | None = None,
    ) -> PlacementTable:
        """Load the kernels of the calls that will be captured with this table. Returns the table itself.

        A capture cannot load a kernel. Call this method, or `vitcache.warm_up`, before the capture.

        Parameters
        ----------
        inputs_embeds
            The destination, or a tensor of its dtype and width on its device. Nothing is written to it.
        deepstack, scale
            As in the calls that will be captured.
        weight, text_scale
            As in the calls of `embed_tokens` that will be captured. None for `weight`: a weight of the
            destination's dtype.

        Raises
        ------
        RuntimeError
            If the current stream captures a CUDA graph, and a kernel is not loaded.
        ValueError, TypeError
            If an argument is not as in `scatter_embeddings` or `embed_tokens`, or `inputs_embeds` is not on
            the table's device.
        """
        destination = Destination("inputs_embeds", inputs_embeds, deepstack)
        self._check_device(destination)
        scale, text_scale = check_scale("scale", scale), check_scale("text_scale", text_scale)
        if weight is not None:
            if not isinstance(weight, Tensor):
                raise TypeError(f"weight must be a tensor or None, got {type(weight).__name__}")
            check_dtype("weight", weight)
            if weight.dim() != 2 or weight.shape[1] != destination.hidden:
                raise ValueError(
                    f"weight has shape {tuple(weight.shape)}, it must be (V, {destination.hidden})"
                )
        if self.device.type == "cuda":
            from vitcache.placement import kernel_variants

            text = destination.rows.dtype if weight is None else weight.dtype
            kernel_variants.load(
                kernel_variants.table_variants(
                    destination, self.dtype, text, scale is not None, text_scale is not None
                )
            )
        return self

    def bind(self, destination: Destination) -> Placement:
        """Check the placement against a destination. Later updates must fit in this destination, too.

        Raises
        ------
        RuntimeError
            If `update` was never called, or a lease in the table was released. If the current stream is
            cudaStreamPerThread: the event behind a launch is found by its stream's handle.
        ValueError, IndexError
            If the destination has another device or width than the table, or a span does not fit in it.
        """
        if self._placement is None:
            raise RuntimeError("this table is empty: call its update method first")
        self._check_device(destination)
        check_current_stream(self.device)
        if self._width not in (0, destination.width):
            raise ValueError(
                f"the table has rows of width {self._width}, the destination takes {destination.width}"
            )
        self._placement.check(destination)
        if is_capturing(self.device):
            # A wait for another stream's event would invalidate the capture. `update` has queued that wait.
            self._placement.check_leases()
        else:
            self._placement.use_leases()
        self._width = destination.width
        if self._num_tokens is None or destination.num_tokens < self._num_tokens:
            self._num_tokens = destination.num_tokens
        return self._placement

    def bind_tokens(self, destination: Destination) -> tuple[Placement, Tensor]:
        """`bind`, and return the address of each token's row, 0 for text. Later updates rewrite these.

        Raises
        ------
        ValueError
            If there are more than `max_rows` tokens.
        RuntimeError
            If there are more tokens than in earlier calls, and either work that reads the table is in flight,
            or a CUDA graph is being captured and the table was read before.
        """
        num_tokens = destination.num_tokens
        if num_tokens > self.max_rows:
            raise ValueError(f"there are {num_tokens} tokens, the table's max_rows is {self.max_rows}")
        if num_tokens > self._num_embedded:
            self._check_no_reader_in_flight()
        placement = self.bind(destination)
        if num_tokens > self._num_embedded:
            placement.native.write_token_table(KINDS[self.dtype], self._tokens.data_ptr(), num_tokens)
            self._num_embedded = num_tokens
        return placement, self._tokens[:num_tokens]

    def level_address(self, destination: Destination) -> int:
        """The address of the level table of a destination with listed levels. It is never rewritten.

        Raises
        ------
        RuntimeError
            If the memory for level tables is full.
        """
        key = tuple((level.data_ptr(), level.stride(0)) for level in destination.planes[1:])
        address = self._level_addresses.get(key)
        if address is None:
            size = self._num_level_values + 2 * len(key)
            if size > LEVEL_VALUES:
                raise RuntimeError(
                    f"this table has memory for {LEVEL_VALUES // 2} deepstack levels in captured lists, the "
                    f"captures need {size // 2}: pass the same tensors in each capture, or one tensor"
                )
            address = self._level_tables.data_ptr() + 8 * self._num_level_values
            destination.native.write_level_table(address)
            self._level_addresses[key], self._num_level_values = address, size
        return address

    def record_reader(self) -> None:
        """Record an event behind the launch that reads the table. Under capture, each replay records it."""
        if self.device.type != "cuda":
            return
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            if torch.cuda.is_current_stream_capturing():
                # The record becomes a node of the graph, so every replay records this event.
                self._fences[object()] = fence = Event(external=True)
            else:
                fence = self._fences.setdefault(stream.cuda_stream, Event())
                # Keep the table's memory and rows alive until the launch has read them.
                table_memory_of(self.device).keep_alive((self.rows, self._tokens, self._placement))
            fence.record(stream)

    __reduce_ex__ = refuse_copies("captured graphs read it at a fixed address; make another table")

    @described
    def __repr__(self) -> str:
        num_rows = 0 if self._placement is None else self._placement.native.num_rows(KINDS[self.dtype])
        return f"{num_rows} of {describe_count(self.max_rows, 'row')}, {self.dtype}, {self.device}"

    def _check_device(self, destination: Destination) -> None:
        if destination.rows.device != self.device:
            raise ValueError(
                f"the table is on {self.device}, the destination is on {destination.rows.device}"
            )

    def _check_no_reader_in_flight(self) -> None:
        if self._fences and is_capturing(self.device):
            # A query of an event would invalidate the capture.
            raise RuntimeError(
                "a table that was read cannot be written while a CUDA graph is being captured: "
                "before the capture, update it, and use it once with the same number of tokens"
            )
        if not all(fence.query() for fence in self._fences.values()):
            raise RuntimeError("work that reads this table is in flight: wait for the replay, then update")


def _width_of(item: Any) -> int:
    width = getattr(item, "row_width", None)
    return width if width is not None else item.shape[-1] if isinstance(item, Tensor) and item.dim() else 0
