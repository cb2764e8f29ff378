"""Calls with tensors whose storage was resized, before the call or by Python code that the call runs.

A call that reads such a tensor may end the process: `python hostile_memory.py` makes all calls, and prints
the name of each one with the exception that it raised.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vitcache import (
    EmbeddingCache,
    Lease,
    PlacementTable,
    Span,
    embed_tokens,
    scatter_embeddings,
    spans_from_placeholder,
    spans_from_token_ids,
)

# Large enough that the allocator gives freed memory back to the system: a read of it ends the process.
TOKENS, WIDTH, ROWS = 4096, 256, 2048
HALF = "half"  # resize to the half; None: free


class Plain(Tensor):
    """A subclass without functions of its own."""


def resize(tensor: Tensor, to: str | None) -> None:
    """Free the storage of a tensor, or halve it."""
    storage = tensor.untyped_storage()
    storage.resize_(storage.nbytes() // 2 if to == HALF else 0)


class Start:
    """The first token of an item: `act` runs while the call converts it to an int."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __index__(self) -> int:
        self.act()
        return 1


def scatter_arguments(form: str) -> dict[str, Any]:
    """Arguments of `scatter_embeddings` with all tensors that the form has, by name."""
    levels = {"levels": 2, "list": 2, "packed": 2, "level": 1}.get(form, 0)
    found: dict[str, Any] = {
        "inputs_embeds": torch.zeros(TOKENS, WIDTH),
        "item": torch.ones(ROWS, WIDTH * (1 + levels)),
    }
    if form == "strided":
        found["item"] = torch.ones(WIDTH, ROWS).t()
    if form == "subclass":
        found = {name: tensor.as_subclass(Plain) for name, tensor in found.items()}
    if form == "levels":
        found["deepstack"] = torch.zeros(2, TOKENS, WIDTH)
    if form == "packed":
        found["deepstack_rows"] = torch.zeros(2, ROWS, WIDTH)
    if form == "list":
        found["first"], found["second"] = torch.zeros(TOKENS, WIDTH), torch.zeros(TOKENS, WIDTH)
    if form == "level":
        found["first"] = torch.zeros(TOKENS, WIDTH)
    if form == "batch":
        found["inputs_embeds"] = torch.zeros(2, TOKENS // 2, WIDTH)
    return found


def scatter(found: dict[str, Any], start: Any, scale: float | None = None) -> Tensor:
    """Call `scatter_embeddings` with `scatter_arguments`."""
    named = {name: found[name] for name in ("deepstack", "deepstack_rows") if name in found}
    if "first" in found:
        named["deepstack"] = [found[name] for name in ("first", "second") if name in found]
    return scatter_embeddings(found["inputs_embeds"], [found["item"]], [start], scale=scale, **named)


def embed_arguments(form: str) -> dict[str, Any]:
    """Arguments of `embed_tokens`, by name."""
    ids = torch.zeros(TOKENS, dtype=torch.int64)
    if form == "strided":
        ids = torch.zeros(TOKENS, 2, dtype=torch.int64)[:, 0]
    found = {"input_ids": ids, "weight": torch.zeros(TOKENS, WIDTH), "item": torch.ones(ROWS, WIDTH)}
    if form == "out":
        found["out"] = torch.zeros(TOKENS, WIDTH)
    return found


def embed(found: dict[str, Any], start: Any, scale: float | None = None) -> Tensor:
    """Call `embed_tokens` with `embed_arguments`."""
    return embed_tokens(
        found["input_ids"], found["weight"], [found["item"]], [start], out=found.get("out"), text_scale=scale
    )


def table_call(found: dict[str, Any], act: Callable[[], object]) -> Tensor:
    """Use a table, after `act` has run behind its update."""
    table = PlacementTable(TOKENS, dtype=torch.float32, device="cpu").update([found["item"]], [1])
    act()
    return scatter_embeddings(found["inputs_embeds"], table, None)


def lease_call(act: Callable[[Lease], object]) -> Tensor:
    """Scatter a lease; `act` runs on it in the middle of the call."""
    cache = EmbeddingCache(WIDTH, dtype=torch.float32, device="cpu", device_bytes=1 << 20, page_rows=2)
    cache.put(bytes(32), torch.ones(2, WIDTH))
    lease = cache.get(bytes(32))
    assert lease is not None
    start = Start(lambda: act(lease))
    return scatter_embeddings(torch.zeros(TOKENS, WIDTH), [lease], [start])


class Interface:
    """An object that names memory that is not its own."""

    def __init__(self, shape: tuple[int, ...], kind: str) -> None:
        described = {"shape": shape, "typestr": kind, "data": (16, True), "version": 3}
        self.__array_interface__ = self.__cuda_array_interface__ = described

    def __dlpack__(self, **_: object) -> object:
        raise AssertionError("a capsule was asked for")


class LyingSpan:
    """Says that it is a Span, and clears the list that contains it."""

    def __init__(self, entries: list[Any]) -> None:
        self.entries = entries

    @property
    def __class__(self) -> type:  # type: ignore[override]
        self.entries.clear()
        return Span


def lying_span() -> Tensor:
    """Scatter a list of spans that clears itself while it is read."""
    entries: list[Any] = []
    entries += [LyingSpan(entries) for _ in range(100)]
    return scatter_embeddings(torch.zeros(4, 2), [torch.ones(1, 2)], [entries])


def changed_metadata(change: Callable[[Tensor], object]) -> Tensor:
    """Scatter an item whose shape or memory `change` replaces in the middle of the call."""
    found = scatter_arguments("item")
    return scatter(found, Start(lambda: change(found["item"])))


def cache_call(num_bytes: str | None) -> object:
    """Insert rows whose storage was resized."""
    cache = EmbeddingCache(WIDTH, dtype=torch.float32, device="cpu", device_bytes=8 << 20, page_rows=2)
    rows = torch.ones(ROWS, WIDTH)
    resize(rows, num_bytes)
    return cache.put(bytes(32), rows)


def reserved_call(num_bytes: str | None, *, stored: bool) -> object:
    """Write or store rows whose storage is resized, to a reservation."""
    cache = EmbeddingCache(WIDTH, dtype=torch.float32, device="cpu", device_bytes=8 << 20, page_rows=2)
    found = scatter_arguments("item")
    with cache.reserve(bytes(32), ROWS) as reservation:
        if not stored:
            resize(found["item"], num_bytes)
            return reservation.write(found["item"])
        start = Start(lambda: resize(found["item"], num_bytes))
        return scatter_embeddings(found["inputs_embeds"], [found["item"]], [start], store=[reservation])


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the name of each call, and the call. The first word is the kind of exception that is wanted."""
    calls: list[tuple[str, Callable[..., Any], Callable[..., Any], list[str]]] = [
        (
            "scatter",
            scatter_arguments,
            scatter,
            ["item", "strided", "subclass", "batch", "levels", "level", "list", "packed"],
        ),
        ("embed", embed_arguments, embed, ["item", "strided", "out"]),
    ]
    for function, arguments, call, forms in calls:
        for form in forms:
            for name in arguments(form):
                for to in (None, HALF):
                    for scale in (None, 2.0):

                        def before(arguments=arguments, call=call, form=form, name=name, to=to, scale=scale):
                            found = arguments(form)
                            resize(found[name], to)
                            return call(found, 1, scale)

                        def during(arguments=arguments, call=call, form=form, name=name, to=to, scale=scale):
                            found = arguments(form)
                            return call(found, Start(lambda: resize(found[name], to)), scale)

                        label = f"{function} {form}, {name} to {to}, scale {scale}"
                        yield f"ValueError {label}, before", before
                        # An item whose rows have gaps is copied before the spans are read.
                        is_copied = function == "scatter" and form == "strided" and name == "item"
                        yield f"{'ok' if is_copied else 'ValueError'} {label}, during", during
    for to in (None, HALF):
        for name in ("inputs_embeds", "item"):

            def with_table(name=name, to=to):
                found = scatter_arguments("item")
                return table_call(found, lambda: resize(found[name], to))

            yield f"ValueError table, {name} to {to}", with_table
        yield f"ValueError put to {to}", lambda to=to: cache_call(to)
        yield f"ValueError write to {to}", lambda to=to: reserved_call(to, stored=False)
        yield f"ValueError store to {to}", lambda to=to: reserved_call(to, stored=True)

        def freed_spans(to=to):
            spans = torch.zeros(TOKENS, 3, dtype=torch.int64)
            resize(spans, to)
            return scatter_embeddings(torch.zeros(TOKENS, WIDTH), torch.ones(ROWS, WIDTH), spans)

        def freed_mask(to=to):
            mask = torch.ones(1 << 22, dtype=torch.bool)
            resize(mask, to)
            return spans_from_placeholder(0, 1 << 22, mask)

        def freed_ids(to=to):
            ids = torch.ones(1 << 22, dtype=torch.int64)
            resize(ids, to)
            return spans_from_token_ids(ids, 0, [])

        yield f"ValueError spans to {to}", freed_spans
        yield f"ValueError mask to {to}", freed_mask
        yield f"ValueError ids to {to}", freed_ids
    yield (
        "ValueError item set to other memory",
        lambda: changed_metadata(lambda item: item.set_(torch.ones(1))),
    )
    yield "ok item of fewer rows", lambda: changed_metadata(lambda item: item.resize_(1, WIDTH))
    yield "ok item of other strides", lambda: changed_metadata(lambda item: item.t_())
    yield "RuntimeError lease released", lambda: lease_call(lambda lease: lease.release())
    yield "TypeError lying span", lying_span
    yield "TypeError mask interface", lambda: spans_from_placeholder(0, 4, Interface((4,), "|b1"))
    yield "TypeError ids interface", lambda: spans_from_token_ids(Interface((4,), "<i8"), 0, [])
    yield "TypeError id interface", lambda: spans_from_token_ids([Interface((), "<i8")], 0, [])
    yield (
        "TypeError spans interface",
        lambda: scatter_embeddings(torch.zeros(4, 2), torch.ones(1, 2), Interface((1, 3), "<i8")),
    )
    yield (
        "TypeError traced spans interface",
        lambda: scatter_embeddings(
            torch.zeros(4, 2, device="meta"), torch.ones(1, 2, device="meta"), Interface((1, 3), "<i8")
        ),
    )
    yield (
        "TypeError item interface",
        lambda: scatter_embeddings(torch.zeros(4, 2), [Interface((1, 2), "<f4")], [0]),
    )


def outcome(call: Callable[[], object]) -> tuple[str, str]:
    """Return the name and the message of the exception of a call, or "ok"."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "ok", ""


if __name__ == "__main__":
    for name, call in cases():
        print(json.dumps([name, *outcome(call)]), flush=True)
