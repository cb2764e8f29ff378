"""`Ranks`: the tensor parallel ranks of a scheduler run the same calls of the encoders, and fail alike.

The ranks get the same requests, but their caches differ: by their sizes, rejected rows and failures. In each
step they agree over SGLang's own groups of attention ranks (gloo, in host memory):

1. at the look-up, which items all ranks encode, and which ones failed on a rank (`Agreement.states`, once
   more if any of them failed);
2. before each call of an encoder, which of its items a rank could not copy to the device (the same);
3. after it, whether the call has ended alike (`Ranks.call`): rows of equal shapes, converted, or one
   exception;
4. after the placement of a step with a call, which items have no rows on a rank (`Ranks.share_errors`).

A step without a miss on any rank has the first alone. The order of the calls is equal on all ranks:

- SGLang broadcasts the requests, and its schedulers make equal batches, so all ranks run a step or none does.
  1. has one state for each place of an item in them, so the numbers of states are equal: equal items are one
  item, but not on a rank that cannot make or hash one of them. That rank has failed, so all ranks share the
  states once more, and all of these items fail (`RankStates.share_by_place`).
- The items to encode, their order and their rows are results of 1., so the micro-batches are equal. Hits,
  kept rows and prefetched features of a rank change only where its rows are.
- 2. makes the items of a call equal. 3. lets the items of a failed call be encoded one by one on all ranks or
  on none.
- All calls but the tail of more than 62 states send one message of one size. Its first number tells 3. from
  the others, and has their number of states: if that of a rank differs, all ranks raise.
- An exception beside those of items leaves the step, and ends the scheduler as without vitcache. SGLang then
  ends all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from traceback import walk_tb
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from vitcache.adapters.agreement import Agreement
from vitcache.adapters.sglang.engine_modules import parallel_value
from vitcache.adapters.sglang.failed_items import cause_text
from vitcache.pipeline.items import Chunk
from vitcache.pipeline.rank_states import RankState, other_rank_error
from vitcache.pipeline.results import ItemError
from vitcache.placement.spans import clip_spans

# Longest wait of a rank whose encoder has raised: the other ranks may wait for it in a collective.
RAISED_WAIT = timedelta(seconds=60)


class RanksDiffer(BaseException):
    """The ranks no longer make the same collectives. It leaves the pipeline: no `Exception` of an item."""


class Ranks:
    """The agreements of one model's steps. One thread uses it.

    Parameters
    ----------
    groups
        The process groups of the ranks, as in `Agreement`.
    """

    def __init__(self, groups: Sequence[Any]) -> None:
        self._agreement = Agreement(groups)
        self._encodes = False  # whether the ranks encode an item in this step

    @classmethod
    def of_scheduler(cls) -> Ranks | None:
        """Return the object for the groups of SGLang's scheduler in this process; None: it has one rank."""
        groups = attention_groups()
        return cls(groups) if groups else None

    def begin(self) -> None:
        """Begin a step."""
        self._encodes = False

    def __call__(self, miss: Tensor) -> Tensor:
        """`agree` of a `VisionPipeline`, which calls `states` in its place."""
        return self.states(miss).bool()

    def states(self, states: Tensor) -> Tensor:
        """Return the states of items on all ranks. As `Agreement.states`."""
        agreed = self._agreement.states(states)
        self._encodes = self._encodes or bool((agreed == RankState.MISS).any())
        return agreed

    def any_rank(self, flags: Sequence[bool]) -> Sequence[bool]:
        """Return for each flag whether a rank has set it. Raises as `Agreement.states`."""
        found: list[bool] = self._agreement(torch.tensor(flags, device="cpu")).tolist()
        return found

    def call(self, embedder: Callable[[list[Any]], Any], sources: list[Any]) -> Any:
        """Call an encoder, and compare the ends of the call on all ranks.

        Raises
        ------
        Exception
            The exception of the encoder, if it was raised on all ranks at one place.
        RanksDiffer
            If the ranks' calls have ended differently, or a rank's has not ended `RAISED_WAIT` after the
            encoder has raised on this rank.
        """
        try:
            found = embedder(sources)
        except Exception as error:
            self._compare(end_of_error(error), f"raised {cause_text(error)}", error)
            raise
        self._compare(end_of_rows(found), "returned")
        return found

    def _compare(self, end: tuple[Any, ...], text: str, error: Exception | None = None) -> None:
        try:
            are_equal = self._agreement.are_equal(
                crc32(repr(end).encode()) >> 2, None if error is None else RAISED_WAIT
            )
        except Exception as lost:
            raise RanksDiffer(
                f"an encoder has {text} on this rank, and another rank did not end the call: {lost}"
            ) from (error or lost)
        if not are_equal:
            raise RanksDiffer(
                f"an encoder has {text} on this rank, but ended differently on another one"
            ) from (error)

    def share_errors(
        self,
        errors: list[ItemError],
        chunks: Sequence[Chunk],
        inputs_embeds: Tensor,
        deepstack: Tensor | None,
    ) -> list[ItemError]:
        """Return the errors of a step's items on all ranks; the rows of these items become zero.

        Parameters
        ----------
        errors
            Those of this rank.
        chunks, inputs_embeds, deepstack
            The step's arguments of `VisionPipeline.place`; `deepstack` ``(tokens, levels * hidden)``.

        Raises
        ------
        ValueError, RuntimeError
            As `Agreement.states`.
        """
        if not self._encodes:  # an earlier failure is shared already
            return errors
        places = [(chunk, item) for chunk, each in enumerate(chunks) for item in range(len(each.items))]
        mine = {error[:2]: error for error in errors}
        failed = torch.tensor([place in mine for place in places], device="cpu")
        found = self._agreement.states(failed).tolist()
        shared = list(errors)
        for place, is_failed in zip(places, found, strict=True):
            if is_failed and place not in mine:
                chunk = chunks[place[0]]
                shared.append(_other_error(*place, chunk))
                _zero_rows(chunk, place[1], inputs_embeds, deepstack)
        return sorted(shared, key=lambda error: error[:2])


def attention_groups() -> list[Any]:
    """Return the groups of the ranks that run the same steps, of more than one rank each: gloo, on the host.

    The schedulers of one attention data parallel rank share their batches. They are the product of its tensor
    and its context parallel ranks.
    """
    return [
        parallel_value(f"{name}_group", None).cpu_group
        for name in ("attn_tp", "attn_cp")
        if parallel_value(f"{name}_size", 1) > 1
    ]


def end_of_rows(found: Any) -> tuple[Any, ...]:
    """Describe the result of an encoder: types, shapes and dtypes."""
    if isinstance(found, list | tuple):
        return tuple(map(end_of_rows, found))
    return type(found).__name__, tuple(getattr(found, "shape", ())), str(getattr(found, "dtype", None))


def end_of_error(error: Exception) -> tuple[Any, ...]:
    """Describe an exception: its type, and the lines of its traceback.

    Its text may name the device of the rank. Ranks that raise at different lines may have made different
    collectives.
    """
    return type(error).__name__, *(
        (frame.f_code.co_name, line) for frame, line in walk_tb(error.__traceback__)
    )


def _other_error(chunk: int, item: int, each: Chunk) -> ItemError:
    return ItemError(chunk, item, each.items[item].num_rows, None, other_rank_error())


def _zero_rows(chunk: Chunk, item: int, inputs_embeds: Tensor, deepstack: Tensor | None) -> None:
    for span in clip_spans(chunk.items[item].spans, chunk.start, chunk.length):
        first = chunk.token_offset + span.start
        for rows in (inputs_embeds, deepstack):
            if rows is not None:
                rows[first : first + span.length].zero_()
