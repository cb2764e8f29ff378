"""A placement at a fixed address: what a captured CUDA graph reads anew at each replay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitcache.device.streams import Event, is_capturing
from vitcache.pages.reservation import Reservation
from vitcache.placement.destination import Destination
from vitcache.placement.placement import Placement
from vitcache.placement.table_memory import table_memory_of
from vitcache.rows import KINDS


class PlacementTable:
    """The rows of a placement that changes between replays of a CUDA graph.

    `update` it, capture `scatter_embeddings` or `embed_tokens` with the table in the place of `embeddings`
    and None for `spans`, then `update` it before each replay. Eager calls take a table too, on the CPU as
    well.

    Parameters
    ----------
    max_rows
        Most rows of one placement, and most tokens that `embed_tokens` can build from it.
    dtype
        Dtype of the rows: float32, float16 or bfloat16.
    device
        Where the rows go. None: the current CUDA device if there is one, else the CPU.

    Raises
    ------
    ValueError
        If `max_rows` is less than 1.
    TypeError
        If `dtype` is another one.

    Notes
    -----
    One thread at a time. Rows are read when the graph runs: their writing must be ordered before the replay,
    and a lease in the table must be held until the last replay that reads it is done. The table keeps its
    tensors alive until the next `update`, and must itself outlive the graphs that captured it.
    """

    def __init__(
        self, max_rows: int, *, dtype: torch.dtype = torch.bfloat16, device: torch.device | str | None = None
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows is {max_rows}, it must be at least 1")
        if dtype not in KINDS:
            raise TypeError(f"dtype is {dtype}, it must be float32, float16 or bfloat16")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.max_rows = max_rows
        self.dtype = dtype
        self.device = torch.empty(0, device=device).device  # with its number
        pinned = self.device.type == "cuda"
        # A tensor made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            self.rows, self._tokens = (
                torch.zeros(size, dtype=torch.int64, device="cpu", pin_memory=pinned)
                for size in (2 * max_rows, max_rows)
            )
        self._fences: dict[object, Any] = {}  # events by what leaves them: a stream, or one captured call
        self._placement: Placement | None = None
        self._width = 0  # of the rows, once there were some
        self._num_tokens: int | None = None  # of the smallest destination so far
        self._num_embedded = 0  # tokens that embed_tokens reads from the table

    def update(self, embeddings: Any, spans: Any) -> PlacementTable:
        """Replace the placement; arguments are those of `scatter_embeddings`. Returns the table itself.

        Raises
        ------
        RuntimeError
            If a replay or call that reads the table is still in flight, or a CUDA graph is being captured
            and the table was read before.
        ValueError
            If the rows are more than `max_rows`, of another width than before, or not 16-byte aligned where
            their width is.
        TypeError
            If the rows are not of the table's dtype, or come from a `Reservation`.
        IndexError, ValueError, TypeError
            As `scatter_embeddings` into the smallest destination that the table was used with.

        Notes
        -----
        If anything is raised the table keeps what it had. The host writes the table and waits for nothing.
        """
        self._refuse_in_flight()
        items = [embeddings] if isinstance(embeddings, Tensor) else embeddings
        width = self._width or (_width_of(items[0]) if items else 0)
        placement = Placement(Destination.unbound(width, self.device, self._num_tokens), embeddings, spans)
        if any(isinstance(item, Reservation) for item in placement.items):
            raise TypeError("a PlacementTable takes no Reservation: commit it, and lease its rows")
        kind = KINDS[self.dtype]
        if torch.is_grad_enabled() and any(
            isinstance(i, Tensor) and i.requires_grad for i in placement.items
        ):
            raise ValueError("a PlacementTable has no gradients: use torch.no_grad()")
        others = [dtype for dtype in placement.dtypes() if dtype != self.dtype]
        if others:
            raise TypeError(f"the rows are {others[0]}, this table holds {self.dtype}")
        num_rows = placement.native.num_rows(kind)
        if num_rows > self.max_rows:
            raise ValueError(f"the placement has {num_rows} rows, this table holds {self.max_rows}")
        if width * self.dtype.itemsize % 16 == 0 and not placement.native.aligned(kind):
            raise ValueError("rows in a table must begin at multiples of 16 bytes")
        if self._num_embedded:
            placement.native.write_token_table(kind, self._tokens.data_ptr(), self._num_embedded)
        self.rows.zero_()
        placement.native.write_row_table(kind, self.rows.data_ptr())
        self._placement, self._width = placement, width
        return self

    def bind(self, destination: Destination) -> Placement:
        """Check the placement against a destination, and hold later updates to it.

        Raises
        ------
        RuntimeError
            If the table was never filled.
        ValueError, IndexError
            If the placement does not fit there.
        """
        if self._placement is None:
            raise RuntimeError("this table is empty: update it before it is used")
        if destination.rows.device != self.device:
            raise ValueError(
                f"this table is on {self.device}, the destination is on {destination.rows.device}"
            )
        if self._width not in (0, destination.width):
            raise ValueError(
                f"this table holds rows of width {self._width}, the destination takes {destination.width}"
            )
        self._placement.check(destination)
        if is_capturing(self.device):
            # A wait for another stream's event would end the capture. `update` has queued it.
            self._placement.check_leases()
        else:
            self._placement.use_leases()
        self._width = destination.width
        if self._num_tokens is None or destination.num_tokens < self._num_tokens:
            self._num_tokens = destination.num_tokens
        return self._placement

    def bind_tokens(self, destination: Destination) -> tuple[Placement, Tensor]:
        """`bind`, and the address of each token's row, 0 for text, kept up to date from now on.

        Raises
        ------
        ValueError
            If the tokens are more than `max_rows`.
        RuntimeError
            If they are more than in calls before, and work that reads the table is in flight, or it was
            read before a capture that is going on.
        """
        num_tokens = destination.num_tokens
        if num_tokens > self.max_rows:
            raise ValueError(f"there are {num_tokens} tokens, this table holds {self.max_rows}")
        if num_tokens > self._num_embedded:
            self._refuse_in_flight()
        placement = self.bind(destination)
        if num_tokens > self._num_embedded:
            placement.native.write_token_table(KINDS[self.dtype], self._tokens.data_ptr(), num_tokens)
            self._num_embedded = num_tokens
        return placement, self._tokens[:num_tokens]

    def record_reader(self) -> None:
        """Mark that the current stream reads the table; under capture, that each replay of the graph does."""
        if self.device.type != "cuda":
            return
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            if torch.cuda.is_current_stream_capturing():
                # A node of the graph: every replay records it anew, whoever starts it.
                self._fences[object()] = fence = Event(external=True)
            else:
                fence = self._fences.setdefault(stream.cuda_stream, Event())
                # Its memory and rows must not go before the launch has read them.
                table_memory_of(self.device).keep_alive((self.rows, self._tokens, self._placement))
            fence.record(stream)

    def _refuse_in_flight(self) -> None:
        if self._fences and is_capturing(self.device):
            # To ask an event would end the capture.
            raise RuntimeError(
                "a table that was read cannot be written while a CUDA graph is being captured: "
                "update it, and use it once with as many tokens, before"
            )
        if not all(fence.query() for fence in self._fences.values()):
            raise RuntimeError("work that reads this table is in flight: wait for the replay, then update")


def _width_of(item: Any) -> int:
    width = getattr(item, "row_width", None)
    return width if width is not None else item.shape[-1] if isinstance(item, Tensor) and item.dim() else 0
