"""Copies of an attached model are not attached: they run alone, also where vitcache is not installed."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from attached import generate, logits, plain_kernels  # noqa: F401
from ready_models import each_kind, placed, ready
from tiny_models import FAMILIES, one_at_a_time
from torch import nn

from vitcache.adapters.attach_stats import AttachStats
from vitcache.adapters.transformers import attach

pytestmark = [pytest.mark.transformers, pytest.mark.usefixtures("plain_kernels")]

OF_TRANSFORMERS = """
import sys
sys.modules["vitcache"] = None
import torch
torch.backends.mkldnn.enabled = False
model, prompt = torch.load(sys.argv[1], weights_only=False)
with torch.no_grad():
    torch.save(model(**prompt).logits, sys.argv[1])
assert not any(name.startswith("vitcache.") for name in sys.modules)
"""


def through_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_file,
}


@each_kind
@pytest.mark.parametrize("how", COPIES)
def test_copy_of_an_attached_model_runs_without_the_attachment(name: str, how: str) -> None:
    family = FAMILIES[name]
    stock, model, whole = one_at_a_time(family, family.model()), family.model(), family.model()
    attachment, prompt = attach(model), family.prompt(stock, 0, 1)
    twin = COPIES[how](model)
    assert torch.equal(logits(twin, prompt), logits(whole, prompt))
    assert torch.equal(generate(twin, prompt)[1], generate(whole, prompt)[1])
    stats = attachment.stats()
    assert (stats, stats.placed_calls, stats.unplaced_calls) == (AttachStats(), 0, {})
    own = attach(twin)
    for _ in range(2):
        assert torch.equal(logits(twin, prompt), logits(stock, prompt))
    assert own.stats().placed_calls == 2


def test_saved_model_runs_where_vitcache_cannot_be_imported(tmp_path: Path) -> None:
    model = FAMILIES["gemma3"].model()
    prompt = FAMILIES["gemma3"].prompt(model, 0, 1)
    attach(model)
    file = tmp_path / "model.pt"
    torch.save((model, prompt), file)
    done = subprocess.run(
        [sys.executable, "-c", OF_TRANSFORMERS, str(file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(file), logits(FAMILIES["gemma3"].model(), prompt))


@each_kind
def test_replica_of_data_parallel_gives_the_stock_logits_and_is_not_placed(name: str) -> None:
    stock, model, attachment, prompt = ready(name)
    replica = model._replicate_for_data_parallel()
    replica.model = model.model._replicate_for_data_parallel()
    expected, expected_tokens = logits(stock, prompt), generate(stock, prompt)
    assert placed(attachment, lambda: logits(replica, prompt)) == (0, {})
    assert torch.equal(logits(replica, prompt), expected)
    assert torch.equal(generate(replica, prompt)[1], expected_tokens[1])
