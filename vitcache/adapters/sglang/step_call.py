"""`StepCall`: the requests of one step of SGLang."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class StepCall(NamedTuple):
    """The requests of a step.

    Attributes
    ----------
    requests, starts, lengths, offsets
        Per request: SGLang's `MultimodalInputs`; the first token of the step, counted in the prompt; the
        number of tokens; and the position of the first one in the batch.
    use_deepstack
        The modalities whose rows have deepstack columns.
    batch
        SGLang's `ForwardBatch`, or None: it has the ids of the requests.
    """

    requests: Sequence[Any]
    starts: Sequence[int]
    lengths: Sequence[int]
    offsets: Sequence[int]
    use_deepstack: Mapping[Any, bool]
    batch: Any = None
