"""Nothing outside of a tensor's storage is read or written: every call of `hostile_memory` raises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import hostile_memory
import pytest
import torch
from hostile_memory import Start, resize

from vitcache import PlacementTable, Span, embed_tokens, scatter_embeddings
from vitcache.placement import dispatch
from vitcache.placement.embed_call import EmbedCall

NAMES = [name for name, _ in hostile_memory.cases()]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, str]]:
    """The exception of each call. A process of its own makes the calls, because a wrong read may end it."""
    command = [sys.executable, str(Path(hostile_memory.__file__))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    return {name: (kind, message) for name, kind, message in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", NAMES)
def test_call_with_memory_that_is_not_its_own_raises(name: str, outcomes: dict[str, tuple[str, str]]) -> None:
    kind, message = outcomes[name]
    assert kind == name.split()[0], message
    assert kind != "ValueError" or "storage" in message or "shares memory" in message


@pytest.mark.parametrize("name", ["inputs_embeds", "item"])
def test_scatter_by_kernels_with_memory_freed_during_the_call_launches_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)
    found = hostile_memory.scatter_arguments("item")
    with pytest.raises(ValueError, match="bytes of its storage, which has 0 bytes"):
        hostile_memory.scatter(found, Start(lambda: resize(found[name], None)))
    if name == "item":
        assert not found["inputs_embeds"].any()
    found = hostile_memory.scatter_arguments("item")
    with pytest.raises(ValueError, match="bytes of its storage, which has 0 bytes"):
        hostile_memory.table_call(found, lambda: resize(found[name], None))


@pytest.mark.parametrize("name", ["input_ids", "weight", "item", "out"])
def test_embed_by_kernels_with_memory_freed_during_the_call_launches_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(dispatch, "uses_kernels", lambda device: True)
    found = hostile_memory.embed_arguments("out")
    with pytest.raises(ValueError, match="bytes of its storage, which has 0 bytes"):
        hostile_memory.embed(found, Start(lambda: resize(found[name], None)))
    if name != "out":
        assert not found["out"].any()


def test_text_id_that_changes_during_the_call_is_not_looked_up() -> None:
    ids, weight = torch.zeros(4, dtype=torch.int64), torch.ones(2, 3)
    start = Start(lambda: ids.fill_(1 << 40))
    with pytest.raises(IndexError, match=r"input_ids\[0\] is 1099511627776, the weight has 2 rows"):
        embed_tokens(ids, weight, [torch.ones(1, 3)], [start])


def test_lease_released_during_the_call_is_a_runtime_error_that_names_the_item() -> None:
    with pytest.raises(RuntimeError, match=r"^item 0: its lease of 2 rows was released$"):
        hostile_memory.lease_call(lambda lease: lease.release())


def test_table_of_memory_freed_after_its_update_is_updated_again() -> None:
    rows, out = torch.ones(2, 4), torch.zeros(3, 4)
    table = PlacementTable(4, dtype=torch.float32, device="cpu").update([rows], [0])
    resize(rows, None)
    with pytest.raises(ValueError, match=r"^item 0 is a tensor whose elements need 32 bytes of its storage"):
        scatter_embeddings(out, table, None)
    with pytest.raises(ValueError, match=r"^item 0 is a tensor whose elements need 32 bytes of its storage"):
        table.update([rows], [0])
    assert scatter_embeddings(out, table.update([torch.ones(3, 4)], [0]), None).all()


def test_tensor_whose_storage_grew_before_the_call_is_placed() -> None:
    rows, out = torch.ones(2, 4), torch.zeros(3, 4)
    for tensor in (rows, out):
        tensor.untyped_storage().resize_(4096)
    assert scatter_embeddings(out, [rows], [1])[1:].all()


def test_single_rows_with_stride_0_that_share_memory_are_refused() -> None:
    memory = torch.zeros(8)
    rows, level = memory.as_strided((1, 4), (0, 1)), memory.as_strided((1, 4), (0, 1), 2)
    with pytest.raises(ValueError, match=r"^deepstack shares memory with inputs_embeds$"):
        scatter_embeddings(rows, [torch.ones(1, 8)], [0], deepstack=[level])
    level = memory.as_strided((1, 4), (0, 1), 4)
    scatter_embeddings(rows, [torch.ones(1, 8)], [0], deepstack=[level])
    assert memory.all()


@pytest.mark.parametrize("stride", [0, 1 << 61, (1 << 62) + 3])
def test_single_row_of_any_stride_is_placed(stride: int) -> None:
    rows = torch.empty_strided((0, 4), (stride, 1))
    assert not scatter_embeddings(torch.zeros(2, 4), [rows], [0]).any()
    weight = torch.ones(1, 4).as_strided((1, 4), (stride, 1))
    out = torch.zeros(1, 4).as_strided((1, 4), (stride, 1))
    assert scatter_embeddings(out, [weight], [0]).all()
    assert embed_tokens(torch.zeros(2, dtype=torch.int64), weight, [], []).all()


def test_text_id_that_an_encoder_changes_behind_the_checks_is_not_looked_up() -> None:
    ids, weight = torch.zeros(4, dtype=torch.int64), torch.ones(2, 3)
    call = EmbedCall(ids, weight, None, None, None, None)
    call.check_spans([[Span(1, 1)]])
    ids.fill_(1 << 40)
    with pytest.raises(IndexError, match=r"input_ids\[0\] is 1099511627776, the weight has 2 rows"):
        call.run([torch.ones(1, 3)], [Span(1, 1)], None)
