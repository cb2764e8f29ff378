"""`Turns`: makes SGLang's objects of a request for each step. SGLang must be importable."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vitcache.bench.sglang.scene import Scene


class Kind(Enum):
    """The objects of a step, and the source of the keys of vitcache. The value is a part of a case's name."""

    SAME = "same request"
    CONTENT = "new request, keys by content"
    IDENTITY = "new request, keys by identity"
    ENGINE_HASH = "new request, keys by SGLang's hash"
    ONE_NEW = "one of them new"

    @property
    def encodes(self) -> int:
        """Images that each step must encode."""
        return int(self is Kind.ONE_NEW)


class Turns:
    """The steps of one contender.

    SAME has the objects of its first step in each step, as a further chunk of a request does. ONE_NEW has a
    new request with the items of the first step and a new image in place of the last one, as the next turn of
    a session does. The other kinds make all objects anew, as a request of another client does; SGLang's hash
    or identity of each item is made before the step, as SGLang's tokenizer makes it.
    """

    def __init__(self, scene: Scene, kind: Kind) -> None:
        self._scene, self._kind = scene, kind
        self._items = self._new_items()
        self._inputs = self._new_inputs(self._items)
        self.features = list(scene.features)

    def next(self) -> tuple[Tensor, Any]:
        """Return the `input_ids` of a step, and a batch with the fields that SGLang's caller reads."""
        if self._kind is Kind.ONE_NEW:
            self.features = [*self._scene.features[:-1], self._scene.new_feature()]
            last = self._item(self._scene.starts[-1], self.features[-1])
            self._inputs = self._new_inputs([*self._items[:-1], last])
        elif self._kind is not Kind.SAME:
            self._inputs = self._new_inputs(self._new_items())
        return self._ids(), forward_batch([self._inputs], [0], [self._scene.num_tokens])

    def _new_items(self) -> list[Any]:
        pairs = zip(self._scene.starts, self._scene.features, strict=True)
        return [self._item(start, feature.clone()) for start, feature in pairs]

    def _item(self, start: int, feature: Tensor) -> Any:
        from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem

        span = (start, start + self._scene.rows - 1)  # both inclusive
        item = MultimodalDataItem(modality=Modality.IMAGE, offsets=[span], feature=feature)
        if self._kind is Kind.IDENTITY:
            item.set_identity(sha256(feature.view(torch.uint8).numpy()).digest())
        else:
            item.set_pad_value()
        return item

    def _new_inputs(self, items: list[Any]) -> Any:
        from sglang.srt.managers.schedule_batch import MultimodalInputs

        return MultimodalInputs(mm_items=items)

    def _ids(self) -> Tensor:
        ids = self._scene.text_ids()
        for item in self._inputs.mm_items:
            [(first, last)] = item.offsets
            ids[first : last + 1] = ids.new_tensor(item.padding_sequence(last + 1 - first))
        return ids.to(self._scene.device)


def forward_batch(
    requests: Sequence[Any], starts: Sequence[int], lengths: Sequence[int], input_embeds: Tensor | None = None
) -> Any:
    """Return a stand-in of SGLang's `ForwardBatch` with the fields that its caller reads.

    Parameters
    ----------
    requests
        The `MultimodalInputs` of each request; None: a request of text alone.
    starts, lengths
        Per request, the first token of the step, counted in the prompt, and the number of tokens.
    input_embeds
        The static buffer of a model runner, to which SGLang copies the rows.
    """
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return SimpleNamespace(
        forward_mode=ForwardMode.EXTEND,
        mm_inputs=list(requests),
        extend_prefix_lens_cpu=list(starts),
        extend_seq_lens_cpu=list(lengths),
        input_embeds=input_embeds,
        mm_input_embeds=None,
        spec_algorithm=None,
        contains_mm_inputs=lambda: any(request is not None for request in requests),
    )
