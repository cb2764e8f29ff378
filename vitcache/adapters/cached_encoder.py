"""`CachedEncoder`: replaces a model's `get_image_features`, `get_video_features` or `get_audio_features`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor

from vitcache.adapters.arguments_by_name import ArgumentsByName
from vitcache.adapters.call_item import CallItem, claim_missing
from vitcache.adapters.call_keys import key_options, keys_of
from vitcache.adapters.caller import is_called_by_stock_code
from vitcache.adapters.disabling import is_disabled
from vitcache.adapters.families import Family
from vitcache.adapters.item_encoder import ItemEncoder, UnfitRows
from vitcache.adapters.lazy_features import planes_of
from vitcache.adapters.lazy_rows import LazyRows
from vitcache.adapters.output_form import OutputForm
from vitcache.adapters.running_call import ThreadState
from vitcache.adapters.session import Session
from vitcache.adapters.split_check import SplitCheck
from vitcache.adapters.splits.call_parts import CallParts, Split, as_parts
from vitcache.pages.lease import Lease, release_all
from vitcache.pipeline.lookup import claim_all

Kind = tuple[bytes, int, tuple[bool, ...]]
"""A kind of call: its framed options, the dimensions of an item, and which of its arguments are None."""

_NO_FORM: tuple[bytes, int, Any] = b"", 0, None
_MOST_FORMS = 64  # a caller with ever new options must not fill the memory


class CachedEncoder(ItemEncoder):
    """Has the signature of `stock` and returns its output; encodes only the items that are not cached.

    The output equals, bit for bit, that of `stock` with its items encoded one at a time. Any thread may call
    it; until the session's first output, calls run one after the other.
    """

    def __init__(self, session: Session, stock: Callable[..., Any], modality: str, family: Family) -> None:
        super().__init__(session, stock, modality, family)
        functools.update_wrapper(self, stock)
        self._bind = ArgumentsByName(stock)
        self.__signature__ = self._bind.signature  # `generate` reads it to choose the arguments
        self._modality = modality
        self._split: Split = family.splits[modality]
        # By kind of call: namespace of the weights, epoch, form of an item's output; the check of a split.
        self._forms: dict[Kind, tuple[bytes, int, OutputForm]] = {}
        self._checks: dict[Kind, SplitCheck] = {}
        self._is_unfit = False

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model, by deepcopy or pickle, gets its own stock method in place of this object."""
        return getattr, (self._session.model, self.name)

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self._session
        if session.thread.encoding:  # a stock video method may call the image method
            return self.stock(*args, **kwargs)
        placement = session.placement
        if placement is not None and (call := placement.thread.call) is not None:
            if not is_called_by_stock_code(session.model, call.frame_id):
                return self._serve_user(placement.thread, args, kwargs)
            call.has_items = True
        if is_disabled():
            return self._serve_disabled(args, kwargs)
        if self._is_unfit:
            return self._serve_unfit(args, kwargs)
        arguments, config = self._bind(args, kwargs), session.model.config
        parts: CallParts | None = None
        namespace = b""
        if not self._must_bypass(arguments):
            namespace = session.current_namespace()  # before `tower_device`, which it updates
            if not self._is_autocast(arguments):
                split = self._split(config, arguments)
                parts = split if isinstance(split, CallParts) else as_parts(split)
        if parts is not None and parts.shapes:
            options = arguments.copy()
            for name in parts.names:
                options.pop(name, None)
            keyed = key_options(options, config)
            if keyed is not None:
                given, framed = keyed
                keys = keys_of(parts, arguments[parts.names[0]], self._modality, given, framed, namespace)
                # With other arguments or dimensions, a stock method may return other containers.
                missing = tuple(map(is_, map(arguments.get, parts.names), repeat(None)))
                kind = framed, len(parts.shapes[0]), missing
                whole = partial(self.run_whole, args, kwargs) if self._checks_splits else None
                try:
                    if session.is_settled and kind in self._forms:
                        return self._serve(parts, keys, options, kind, namespace, whole)
                    with session.first_output:
                        return self._serve(parts, keys, options, kind, namespace, whole)
                except UnfitRows as error:
                    self._is_unfit = True
                    session.warn(str(error))
                    return self._serve_unfit(args, kwargs)
        session.count(bypassed=1)
        self._note_unplaced("the stock method served the call")
        return self.stock(*args, **kwargs)

    def _serve_user(self, thread: ThreadState, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return tensors with memory: a hook of the forward calls this, or a caller after an interrupt."""
        call, thread.call = thread.call, None
        try:
            return self(*args, **kwargs)
        finally:
            thread.call = call

    def _note_unplaced(self, reason: str) -> None:
        """Note why the running call of the forward gets tensors with memory."""
        placement = self._session.placement
        if placement is not None and placement.thread.call is not None:
            placement.thread.call.note(reason)

    def _serve_unfit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the stock method's output for a modality whose rows the cache cannot hold."""
        if self._notice_training():
            self._session.warn_training()
        self._session.count(bypassed=1)
        self._note_unplaced("the cache cannot hold rows of this modality")
        return self.run_whole(args, kwargs)

    def _serve_disabled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the stock method's output. The image method is stock, too, if this video method calls it.

        A caller of an attached model may leave pixels on the CPU, so they are copied to the tower.
        """
        self._session.disabled.count()
        self._note_unplaced("VITCACHE_DISABLE is set")
        self._notice_training()
        return self.run_whole(args, kwargs)

    def _notice_training(self) -> bool:
        """Whether the call is in training mode. If it is, no earlier entry is used again."""
        session = self._session
        model: Any = session.model
        is_training: bool = model.training or model._modules[self._tower_name].training
        if is_training:
            session.forget()
        return is_training

    def _must_bypass(self, arguments: dict[str, Any]) -> bool:
        """Whether the stock method must serve the call.

        It serves calls in training or in grad mode, and calls that ask for a tuple or for hidden states or
        attentions of the tower.
        """
        session = self._session
        if self._notice_training():
            session.warn_training()
            return True
        as_object = arguments.get("return_dict")
        if as_object is None:
            as_object = session.config.return_dict
        pixels = next(iter(arguments.values()))
        return (
            torch.is_grad_enabled()
            or not as_object
            or bool(arguments.get("output_hidden_states") or arguments.get("output_attentions"))
            or not isinstance(pixels, Tensor)
        )

    def _is_autocast(self, arguments: dict[str, Any]) -> bool:
        """Whether the tower would run under autocast. The stock method serves such a call, too."""
        pixels = next(iter(arguments.values()))
        return torch.is_autocast_enabled((self.device() or pixels.device).type)

    def _serve(
        self,
        parts: CallParts,
        keys: list[bytes],
        options: dict[str, Any],
        kind: Kind,
        namespace: bytes,
        whole: Callable[[], Any] | None,
    ) -> Any:
        """Return the stock method's output for the items with these keys.

        Parameters
        ----------
        whole
            Returns the stock method's output for all items at once, to check the split before anything is
            inserted. None: the split needs no check.
        """
        session = self._session
        rows: dict[bytes, Any] = dict.fromkeys(keys)
        wanted = list(rows)
        if whole is not None and (len(keys) == 1 or self._check_of(kind).is_done):
            whole = None
        of_weights, epoch, form = self._forms.get(kind, _NO_FORM)
        # A form ends with its weights. A new epoch tells of a change that the namespace does not show.
        is_known = of_weights == namespace and (not form.constants or epoch == session.cache.epoch)
        first: list[CallItem] = []
        if not is_known:  # encode the first item even if it is in the cache: its output shows the form
            first = [CallItem(keys[0], parts.item_call(0))]
            epoch = session.cache.epoch
            form = self._encode_first(first[0], options, inserts=whole is None)
            if len(self._forms) >= _MOST_FORMS:
                self._forms = {}
            self._forms[kind] = namespace, epoch, form
            rows[keys[0]] = first[0].rows
            del wanted[0]
        found = session.cache.get_many(wanted)
        rows.update(zip(wanted, found, strict=True))
        leases = list(filter(None, found))
        try:
            if len(leases) == len(wanted):
                session.count(hits=len(leases), duplicates=len(keys) - len(rows))
                output, chosen = self._assemble(parts, keys, rows, kind, form, whole, leases, ())
            else:
                output, chosen = self._encode_missing(parts, keys, rows, leases, options, kind, form, whole)
        finally:
            release_all(leases)
        if first:
            self.insert(first)
        if session.shadow is not None:
            for key, _, cached in chosen:
                item = CallItem(key, parts.item_call(keys.index(key)))
                session.shadow.check(key, cached, partial(self.encode_alone, item, options))
        return output

    def _check_of(self, kind: Kind) -> SplitCheck:
        """Return the check of the calls of a kind."""
        if kind not in self._checks:
            if len(self._checks) >= _MOST_FORMS:
                self._checks = {}
            self._checks[kind] = SplitCheck(f"{self.name} of {type(self._session.model).__name__}")
        return self._checks[kind]

    def _encode_first(self, item: CallItem, options: dict[str, Any], *, inserts: bool) -> OutputForm:
        """Encode the first item of the calls with these options; return the output's form.

        If `inserts` is false, the caller inserts the rows; the claim on the key is released before.
        """
        session = self._session
        with ExitStack() as cleanup:
            cache = session.cache
            claim_all(cache, [item], cleanup)
            form = self.encode_first(item, options)
            if session.cache is not cache:  # the first output has shown that another cache is needed
                claim_all(session.cache, [item], cleanup)
            if inserts:
                self.insert([item])
        return form

    def _assemble(
        self,
        parts: CallParts,
        keys: list[bytes],
        rows: dict[bytes, Any],
        kind: Kind,
        form: OutputForm,
        whole: Callable[[], Any] | None,
        leases: list[Lease],
        encoded: Sequence[CallItem],
    ) -> tuple[Any, list[Any]]:
        """Return the output for rows by key, and the hits that the shadow chose. Check the split before.

        If the features of the output are lazy, they take over the `leases`, and the list is empty afterwards.
        `encoded` are the items that may have to be inserted.
        """
        session = self._session
        shadow, chosen = session.shadow, []
        if shadow is not None:
            hits = ((key, key, lease) for key, lease in rows.items() if isinstance(lease, Lease))
            chosen = shadow.choose(hits)
        items = list(map(rows.__getitem__, keys))
        elements = None
        # Older stock methods stack the items of several prompts in one tensor: it has an index per item.
        is_grouped = parts.groups is not None and isinstance(form.pooler, type)
        if is_grouped or parts.slices > 1:
            elements = parts.elements(_lengths(items))
        if whole is not None:
            lengths = elements or _lengths(items)
            self._check_of(kind).run(whole, items, form, lengths, repeats_one=len(rows) == 1)
        lengths = _lengths(items)
        thread = self._thread_for_lazy(form, encoded)
        if thread is None:
            planes: Sequence[Tensor] = form.planes(items, session.cache)
        else:
            leases.clear()
            planes = planes_of(LazyRows(items, lengths, form), thread)
        return form.output(planes, elements or lengths), chosen

    def _thread_for_lazy(self, form: OutputForm, encoded: Sequence[CallItem]) -> ThreadState | None:
        """Return the state of the thread if the caller may get lazy features, which keep their leases."""
        session = self._session
        placement = session.placement
        if placement is None:
            return None
        call = placement.thread.call
        if not (placement.thread.pre_encodes if call is None else call.allows_writes):
            return None
        if form.mask_in is not None or form.layers or form.device != session.cache.device:
            reason = "the features are padded, for several layers, or on another device than the cache"
        elif 2 in form.levels and placement.has_compiled_language_model():
            reason = "the forward passes deepstack features on to a compiled language model"
        elif encoded and not self._has_room(form, encoded):
            reason = "the cache is too small for all items of the call"
        else:
            return placement.thread
        self._note_unplaced(reason)
        return None

    def _has_room(self, form: OutputForm, encoded: Sequence[CallItem]) -> bool:
        """Whether the rows that are not inserted yet fit beside the rows that stay leased."""
        pending = [item.rows for item in encoded if item.claim is not None and isinstance(item.rows, Tensor)]
        number = sum(map(len, pending))
        return not number or self._session.cache.has_room(number, row_width=form.width)

    def _encode_missing(
        self,
        parts: CallParts,
        keys: list[bytes],
        rows: dict[bytes, Any],
        leases: list[Lease],
        options: dict[str, Any],
        kind: Kind,
        form: OutputForm,
        whole: Callable[[], Any] | None,
    ) -> tuple[Any, list[Any]]:
        """`_assemble` after the items whose rows are None were encoded; insert their rows."""
        session, cache = self._session, self._session.cache
        items = [
            CallItem(key, parts.item_call(keys.index(key))) for key, lease in rows.items() if lease is None
        ]
        with ExitStack() as cleanup:
            missing = claim_missing(cache, items, leases, cleanup)
            session.count(hits=len(leases), duplicates=len(keys) - len(rows))
            inserted = missing if whole is None else []  # those of a split that needs a check: after it
            try:
                self.encode_all(missing, options, form, inserts=whole is None)
                rows.update((item.key, item.rows) for item in items)
                assembled = self._assemble(parts, keys, rows, kind, form, whole, leases, missing)
                inserted = missing
                return assembled
            finally:
                release_all(leases)  # before the insertions, which may need to evict these entries
                self.insert(inserted)


def _lengths(items: list[Any]) -> list[int]:
    lengths = []
    for item in items:  # a comprehension would enter a frame in Python 3.11
        lengths.append(item.num_rows if isinstance(item, Lease) else len(item))
    return lengths
