"""Outputs of the token embedding that modules of the user keep are not written."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from attached import logits, plain_kernels  # noqa: F401
from ready_models import each_kind, placed, ready
from torch import Tensor, nn

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]


class Keeping(nn.Module):
    """Keeps its arguments and returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def forward(self, embeds: Tensor) -> Tensor:
        self.kept.append(embeds)
        return embeds


@each_kind
@torch.no_grad()
def test_output_of_the_embedding_that_a_module_in_it_keeps_is_not_written(name: str) -> None:
    stock, model, attachment, prompt = ready(name)
    embedding, keeping, found = model.get_input_embeddings(), Keeping(), []
    model.set_input_embeddings(nn.Sequential(embedding, keeping))
    assert placed(attachment, lambda: found.append(logits(model, prompt))) == (1, {})
    assert torch.equal(found[0], logits(stock, prompt))
    assert len(keeping.kept) == 1
    assert torch.equal(keeping.kept[0], embedding(prompt["input_ids"]))
