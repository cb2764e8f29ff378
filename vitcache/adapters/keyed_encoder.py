"""`KeyedEncoder`: the output for items with keys, whose rows the cache has or a tower encodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from vitcache.adapters.call_item import CallItem, claim_missing
from vitcache.adapters.families import Family
from vitcache.adapters.item_encoder import ItemEncoder
from vitcache.adapters.learned_rows import LearnedRows
from vitcache.adapters.output_form import OutputForm
from vitcache.adapters.output_planes import output_planes
from vitcache.adapters.session import Session
from vitcache.adapters.split_check import SplitCheck
from vitcache.adapters.splits.call_parts import CallParts
from vitcache.pages.lease import Lease, release_all
from vitcache.pipeline.lookup import claim_all
from vitcache.pipeline.tier_fetch import Wanted, fetch_missing

Kind = tuple[bytes, int, tuple[bool, ...]]
"""A kind of call: its framed options, the dimensions of an item, and which of its arguments are None."""

_NO_FORM: tuple[int, Any] = 0, None
# A caller with ever new options must not fill the memory. A server with many adapters has a form for each.
_MOST_FORMS = 512


@dataclass(slots=True)
class KeyedCall:
    """A call of a stock method, divided into items.

    Attributes
    ----------
    parts, keys
        The items, and the key of each.
    options
        The arguments that all items have in common.
    kind
        The kind of the call.
    namespace
        The namespace of the model's weights.
    whole
        Returns the stock method's output for all items at once, to check the split before anything is
        inserted. None: the split needs no check.
    """

    parts: CallParts
    keys: list[bytes]
    options: dict[str, Any]
    kind: Kind
    namespace: bytes
    whole: Callable[[], Any] | None


class KeyedEncoder(ItemEncoder):
    """Looks up the items of a call, encodes and inserts the missing ones, and makes the stock output.

    Any thread may call it.
    """

    def __init__(self, session: Session, stock: Callable[..., Any], modality: str, family: Family) -> None:
        super().__init__(session, stock, modality, family)
        # By namespace of the weights and kind of call: epoch, form of an item's output.
        self._forms: dict[tuple[bytes, Kind], tuple[int, OutputForm]] = {}
        self._checks: dict[Kind, SplitCheck] = {}
        self._learned: dict[Kind, LearnedRows] = {}

    def serve(self, call: KeyedCall) -> Any:
        """Return the stock method's output for the items of a call.

        Raises
        ------
        UnfitRows
            If the rows have another dtype or width than the cache, which has entries of another modality.
        """
        session, keys, kind = self._session, call.keys, call.kind
        rows: dict[bytes, Any] = dict.fromkeys(keys)
        wanted = list(rows)
        if call.whole is not None and (len(keys) == 1 or self._check_of(kind).is_done):
            call.whole = None
        # A form ends with its weights. A new epoch tells of a change that the namespace does not show.
        epoch, form = self._forms.get((call.namespace, kind), _NO_FORM)
        is_known = form is not None and (not form.constants or epoch == session.cache.epoch)
        first: list[CallItem] = []
        if not is_known:  # encode the first item even if it is in the cache: its output shows the form
            first = [CallItem(keys[0], call.namespace, call.parts.item_call(0))]
            epoch = session.cache.epoch
            form = self._encode_first(first[0], call)
            if len(self._forms) >= _MOST_FORMS:
                oldest, *_ = self._forms  # one step, as another thread may add a form
                self._forms.pop(oldest, None)
            self._forms[call.namespace, kind] = epoch, form
            rows[keys[0]] = first[0].rows
            del wanted[0]
        found = session.cache.get_many(wanted)
        rows.update(zip(wanted, found, strict=True))
        leases = list(filter(None, found))
        try:
            if len(leases) == len(wanted):
                session.count(hits=len(leases), duplicates=len(keys) - len(rows))
                output, chosen = self._assemble(call, rows, form, leases, ())
            else:
                output, chosen = self._encode_missing(call, rows, form, leases)
        finally:
            release_all(leases)
        if first:
            self.insert(first)
        if session.shadow is not None:
            for key, _, cached in chosen:
                item = CallItem(key, call.namespace, call.parts.item_call(keys.index(key)))
                session.shadow.check(key, cached, partial(self.encode_alone, item, call.options))
        return output

    def _check_of(self, kind: Kind) -> SplitCheck:
        """Return the check of the calls of a kind."""
        if kind not in self._checks:
            if len(self._checks) >= _MOST_FORMS:
                self._checks = {}
            self._checks[kind] = SplitCheck(f"{self.name} of {type(self._session.model).__name__}")
        return self._checks[kind]

    def _encode_first(self, item: CallItem, call: KeyedCall) -> OutputForm:
        """Encode the first item of the calls with these options; return the output's form.

        If the split needs a check, `serve` inserts the rows; the claim on the key is released before.
        """
        session = self._session
        with ExitStack() as cleanup:
            cache = session.cache
            claim_all(cache, [item], cleanup)
            try:
                form = self.encode_first(item, call.options)
            finally:
                session.state.ignore_own_settings()
            if session.cache is not cache:  # the first output has shown that another cache is needed
                claim_all(session.cache, [item], cleanup)
            if call.whole is None:
                self.insert([item])
        self._learn(call, [item])
        return form

    def _learned_of(self, kind: Kind) -> LearnedRows:
        """Return the numbers of rows of the items of a kind of calls."""
        if kind not in self._learned:
            if len(self._learned) >= _MOST_FORMS:
                self._learned = {}
            self._learned[kind] = LearnedRows()
        return self._learned[kind]

    def _learn(self, call: KeyedCall, encoded: list[CallItem]) -> None:
        """Note the numbers of rows of encoded items, for fetches of items like these."""
        if self._session.cache.has_lower_tiers:
            learned, parts = self._learned_of(call.kind), call.parts
            for item in encoded:
                if isinstance(item.rows, Tensor):
                    number = call.keys.index(item.key)
                    learned.learn(parts.shapes[number], parts.identity(number), len(item.rows))

    def _fetch(self, call: KeyedCall, rows: dict[bytes, Any], form: OutputForm, leases: list[Lease]) -> None:
        """Lease items that the tiers below the host tier have. The host waits at most the cache's deadline.

        Items whose number of rows is unknown are not fetched.
        """
        cache, parts, learned = self._session.cache, call.parts, self._learned_of(call.kind)
        wanted = []
        for key, lease in rows.items():
            if lease is None:
                number = call.keys.index(key)
                num_rows = learned.guess(parts.shapes[number], parts.identity(number))
                if num_rows is not None:
                    wanted.append(Wanted(key, num_rows, form.width, self._session.tenant))
        fetched = fetch_missing(cache, wanted)
        for key, found in zip(fetched, cache.get_many(fetched), strict=True):
            if found is not None:
                rows[key] = found
                leases.append(found)

    def _assemble(
        self,
        call: KeyedCall,
        rows: dict[bytes, Any],
        form: OutputForm,
        leases: list[Lease],
        encoded: Sequence[CallItem],
    ) -> tuple[Any, list[Any]]:
        """Return the output for rows by key, and the hits that the shadow chose. Check the split before.

        `leases` and `encoded` are those of `output_planes`.
        """
        session, parts = self._session, call.parts
        shadow, chosen = session.shadow, []
        if shadow is not None:
            hits = ((key, key, lease) for key, lease in rows.items() if isinstance(lease, Lease))
            chosen = shadow.choose(hits)
        items = list(map(rows.__getitem__, call.keys))
        lengths = []
        for item in items:  # a comprehension would enter a frame in Python 3.11
            lengths.append(item.num_rows if isinstance(item, Lease) else len(item))
        # Older stock methods stack the items of several prompts in one tensor: it has an index per item.
        is_grouped = parts.groups is not None and isinstance(form.pooler, type)
        elements = parts.elements(lengths) if is_grouped or parts.slices > 1 else lengths
        if call.whole is not None:
            self._check_of(call.kind).run(call.whole, items, form, elements, repeats_one=len(rows) == 1)
        return form.output(output_planes(session, form, items, lengths, leases, encoded), elements), chosen

    def _encode_missing(
        self, call: KeyedCall, rows: dict[bytes, Any], form: OutputForm, leases: list[Lease]
    ) -> tuple[Any, list[Any]]:
        """`_assemble` after the items whose rows are None were fetched or encoded; insert their rows."""
        session, keys = self._session, call.keys
        if session.cache.has_lower_tiers:
            self._fetch(call, rows, form, leases)
        items = [
            CallItem(key, call.namespace, call.parts.item_call(keys.index(key)))
            for key, lease in rows.items()
            if lease is None
        ]
        with ExitStack() as cleanup:
            missing = claim_missing(session.cache, items, leases, cleanup)
            session.count(hits=len(leases), duplicates=len(keys) - len(rows))
            is_checked = call.whole is None
            inserted = missing if is_checked else []  # those of a split that needs a check: after it
            try:
                self.encode_all(missing, call.options, form, inserts=is_checked)
                self._learn(call, missing)
                rows.update((item.key, item.rows) for item in items)
                assembled = self._assemble(call, rows, form, leases, missing)
                inserted = missing
                return assembled
            finally:
                release_all(leases)  # before the insertions, which may need to evict these entries
                self.insert(inserted)
