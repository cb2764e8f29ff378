"""How the text rows of a step are looked up: in the model's table, or by the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitcache.placement.embed_call import EmbedCall
from vitcache.placement.scatter_call import ScatterCall
from vitcache.rows import DTYPES

PLAIN_TABLE = "VocabParallelEmbedding"  # vLLM's class; LoRA adapters and plug-ins replace it by another one
PLAIN_METHOD = "UnquantizedEmbeddingMethod"
NUM_PROBED = 16  # ids that the check at start-up looks up


class TextRows:
    """Writes the text rows of a step to `inputs_embeds`.

    If the model's token embedding is a plain table, and the model at most multiplies its rows by a number,
    then one launch writes text rows and rows of items. In other cases, such as a table that tensor parallel
    ranks share, or one with LoRA adapters, the model looks the text rows up first.

    Parameters
    ----------
    look_up
        The model's function from ids to rows.
    table
        vLLM's module of the token embedding, whose `weight` is the table. None: the model looks rows up.
    factor
        A tensor with the number that the model multiplies rows of the table by. None: no multiplication.
    is_shared
        Whether the model looks rows up in a table that tensor parallel ranks share.

    Notes
    -----
    The weight of `table` is read at each call, because `reload_weights` may replace it. Only the worker's
    thread may call; work is queued on the current stream.
    """

    def __init__(
        self,
        look_up: Callable[[Tensor], Tensor],
        table: Any = None,
        factor: Tensor | None = None,
        *,
        is_shared: bool = False,
    ) -> None:
        self._look_up = look_up
        self._is_shared = is_shared
        self._table = table
        self._factor = factor
        self._scale = None if factor is None else float(factor)

    @classmethod
    def of_model(cls, model: Any, dtype: torch.dtype) -> TextRows:
        """Find out how a model looks text rows up. The host waits for the device.

        Parameters
        ----------
        model
            A multimodal model of vLLM with loaded weights.
        dtype
            Dtype of `inputs_embeds`.
        """
        language_model = model.get_language_model()
        look_up = language_model.embed_input_ids
        inner = getattr(language_model, "model", language_model)
        table = getattr(inner, "embed_tokens", None)
        if not _is_plain(table, dtype):
            is_shared = getattr(table, "tp_size", 1) > 1
            return cls(look_up, is_shared=is_shared)
        for factor in (None, getattr(inner, "normalizer", None)):
            found = cls(look_up, table, factor)
            if found.agrees():
                return found
        return cls(look_up)

    @property
    def source(self) -> str:
        """``"table"`` or ``"model"``: the label of the counter "placements"."""
        return "model" if self._table is None else "table"

    @property
    def refuses_foreign_ids(self) -> bool:
        """Whether `begin` fails for ids of items that lie outside of the table.

        A launch does not look these ids up. A table that tensor parallel ranks share masks them.
        """
        return self._table is None and not self._is_shared

    @property
    def scale(self) -> float | None:
        """The number that the model multiplies rows of the table by. None: no multiplication."""
        return self._scale

    def agrees(self) -> bool:
        """Whether `write` gives the bits of the model's own look-up, for some ids of the table."""
        weight = self._table.weight
        num_ids = int(getattr(self._table, "org_vocab_size", len(weight)))
        ids = torch.linspace(0, num_ids - 1, NUM_PROBED, dtype=torch.float64).to(weight.device, torch.int32)
        expected = self._look_up(ids)
        if expected.shape != (NUM_PROBED, weight.shape[1]) or expected.dtype != weight.dtype:
            return False
        rows = torch.full_like(expected, torch.nan)
        self.write(ids, rows)
        return torch.equal(rows.view(torch.uint8), expected.view(torch.uint8))

    def write(self, ids: Tensor, out: Tensor) -> None:
        """Write the rows of ``ids`` ``(T,)`` to `out` ``(T, H)``."""
        if self._table is None:
            out.copy_(self._look_up(ids))
            return
        torch.index_select(self._table.weight, 0, ids, out=out)
        if self._factor is not None:
            out.mul_(self._factor)

    def begin(self, ids: Tensor, out: Tensor, levels: list[Tensor] | None) -> EmbedCall | ScatterCall:
        """Return the call that writes the rows of a step, for rows of items that are not known yet.

        Parameters
        ----------
        ids
            ``(T,)``, on the device of `out`. Ids of tokens of items are not looked up in a table.
        out
            ``(T, H)``.
        levels
            Deepstack levels ``(T, H)``. None: the model has none.
        """
        if self._table is not None:
            return EmbedCall(ids, self._table.weight, out, levels, None, self._scale)
        self.write(ids, out)
        for level in levels or ():
            level.zero_()  # a scatter leaves the levels of text tokens alone
        return ScatterCall(out, levels, None)


def _is_plain(table: Any, dtype: torch.dtype) -> bool:
    """Whether a module is vLLM's token embedding, whole, not quantized and without hooks."""
    return (
        type(table).__name__ == PLAIN_TABLE
        and table.tp_size == 1
        and type(table.quant_method).__name__ == PLAIN_METHOD
        and table.weight.dtype == dtype
        and dtype in DTYPES
        and not (table._forward_hooks or table._forward_pre_hooks)
    )
