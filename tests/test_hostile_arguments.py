"""Each argument of each public callable accepts no value that no caller means, or refuses it by its name.

`public_calls` has one valid call of each callable. Each test replaces one argument by each hostile value.
"""

from __future__ import annotations

import inspect
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("prometheus_client")

from public_calls import CALLS
from public_calls.hostile import ACCEPTED, HOSTILE, accepted

from vitcache import CudaError

MODULES = ("vitcache", "vitcache.adapters.transformers", "vitcache.metrics")
REFUSALS = (ValueError, TypeError, IndexError, TimeoutError, MemoryError, CudaError)
DOCUMENTED = {"invalidate_after": AttributeError}
# Words that messages use for one element of an argument, or for a relation of several arguments.
NAMES = {
    "chats": ("per conversation",),
    "chunks": ("chunk 0",),
    "deepstack": ("item 0",),
    "embeddings": ("item 0",),
    "extras": ("extra",),
    "features": ("feature",),
    "input_ids": ("the prompt has",),
    "items": ("item 0", "no item covers"),
    "keys": ("key must",),
    "length": ("is_embed has shape",),
    "name": (" of SimpleNamespace",),
    "num_rows": ("the prompt has",),
    "offsets": ("offset",),
    "owner": ("sync of",),
    "spans": ("span",),
    "token_id": ("the prompt has",),
}
# Classes whose objects only calls of vitcache make, and records that check nothing.
MADE_BY_CALLS = {"Attachment", "Claim", "Fetch", "Lease", "Prefetch", "Reservation", "Ticket"}
RECORDS = {"Alias", "AttachStats", "CacheStats", "CudaError", "EmbedResult", "ItemError", "KeyedFeature"}
RECORDS |= {"PrefillResult", "RingStats", "TierHits", "TierStats"}
# Methods and an argument that docs/calls.md does not have: vitcache uses them.
INTERNAL = {"PlacementTable.bind", "PlacementTable.bind_tokens", "PlacementTable.level_address"}
OF_TIERS = ("register", "exists", "fetch", "store", "claim", "erase", "generation", "revoke")
INTERNAL |= {f"{tier}.{name}" for tier in ("DiskTier", "MooncakeTier") for name in OF_TIERS}
INTERNAL |= {"Claim.wait: call", "Reservation.write_checked", "Shadow.choose", "Shadow.check"}
SECONDS, MEMORY = 30, 4 << 30


class Hang(BaseException):
    """The call did not return in `SECONDS`."""


@contextmanager
def limits() -> Iterator[None]:
    """Limit the time of a call, and the memory of the process to `MEMORY` more than it has."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    earlier = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, earlier[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, earlier)
        signal.signal(signal.SIGALRM, before)


def fault(call: str, argument: str, value: str) -> str | None:
    """Call with the hostile value; return a line if it is accepted and must not be, or refused badly."""
    with ExitStack() as stack:
        function, arguments = CALLS[call](stack)
        try:
            with limits():
                function(**arguments | {argument: HOSTILE[value]})
        except (*REFUSALS, DOCUMENTED.get(call, CudaError)) as error:
            # Subclasses such as UnicodeEncodeError are not the documented classes.
            is_documented = type(error) in REFUSALS or type(error) is DOCUMENTED.get(call)
            is_named = any(word in str(error) for word in (argument, *NAMES.get(argument, ())))
            if is_documented and is_named and len(str(error)) < 1000:
                return None
            return f"{argument}={value}: {type(error).__name__}: {str(error)[:200]}"
        except (Exception, Hang) as error:
            return f"{argument}={value}: {type(error).__name__}: {str(error)[:200]}"
    if value in accepted(call, argument):
        return None
    return f"{argument}={value} is accepted"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_hostile_argument_is_refused_by_its_name(call: str) -> None:
    with ExitStack() as stack:
        function, arguments = CALLS[call](stack)
        function(**arguments)
    faults = [fault(call, argument, value) for argument in arguments for value in HOSTILE]
    found = [text for text in faults if text is not None]
    assert not found, "\n".join(found)


def public_callables() -> dict[str, Callable[..., Any]]:
    """Return {name in the table: callable} of public functions, constructors and methods with arguments."""
    found = {}
    for name in MODULES:
        module = import_module(name)
        for public in module.__all__:
            value = getattr(module, public)
            if isinstance(value, type):
                if public not in MADE_BY_CALLS | RECORDS:
                    found[public] = value
                methods = {key: method for key, method in vars(value).items() if inspect.isfunction(method)}
                for key, method in methods.items():
                    if (key == "__contains__" or not key.startswith("_")) and public not in RECORDS:
                        found[f"{public}.{key}"] = method
            elif callable(value):
                found[public] = value
    return found


def test_table_has_every_public_callable_with_all_its_arguments() -> None:
    missing = []
    for name, function in public_callables().items():
        arguments = [
            argument
            for argument, parameter in inspect.signature(function).parameters.items()
            if argument != "self" and parameter.kind is not parameter.VAR_KEYWORD
        ]
        if name not in CALLS:
            missing += [name] if arguments and not name.startswith("InvalidateCallback.on_") else []
            continue
        with ExitStack() as stack:
            _, given = CALLS[name](stack)
        missing += [f"{name}: {argument}" for argument in arguments if argument not in given]
    assert sorted(missing) == sorted(INTERNAL)


def test_every_accepted_value_is_of_an_argument_in_the_table() -> None:
    known = set()
    for name, valid in CALLS.items():
        with ExitStack() as stack:
            _, arguments = valid(stack)
        known |= {*arguments, *(f"{name}.{argument}" for argument in arguments)}
    assert set(ACCEPTED) <= known
