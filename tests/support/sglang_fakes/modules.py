"""Modules of SGLang that a test writes to a folder, so that they are imported as the real ones are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REGISTRY = """
import contextvars, functools, pkgutil, sys
from enum import Enum

plug_in = contextvars.ContextVar("plug_in", default=None)


class HookType(Enum):
    AROUND = "around"


class HookRegistry:
    _hooks = {}
    _patched = set()

    @classmethod
    def register(cls, target, hook, hook_type):
        cls._hooks.setdefault(target, []).append((hook_type, hook, plug_in.get()))

    @classmethod
    def apply_hooks(cls):
        for target in [target for target in cls._hooks if target not in cls._patched]:
            owner_name, _, name = target.rpartition(".")
            owner = pkgutil.resolve_name(owner_name)
            if not hasattr(owner, name):
                continue  # SGLang logs it
            function = getattr(owner, name)
            for _, hook, _ in cls._hooks[target]:
                function = _around(function, hook)
            setattr(owner, name, function)
            cls._patched.add(target)


def _around(function, hook):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return hook(function, *args, **kwargs)

    return call
"""

SOURCES = {
    "srt/plugins/hook_registry": REGISTRY,
    "srt/managers/mm_utils": """
def prepare_mm_inputs(input_ids, forward_batch, language_model, kwargs):
    return embed_mm_inputs(
        mm_inputs_list=[each for each in forward_batch.mm_inputs if each is not None],
        extend_prefix_lens=[0], extend_seq_lens=[0], input_ids=input_ids, input_embedding=None,
    )


def embed_mm_inputs(
    mm_inputs_list, extend_prefix_lens, extend_seq_lens, input_ids, input_embedding, multimodal_model=None,
    data_embedding_func_mapping=None, placeholder_tokens=None, use_deepstack={},
):
    return "stock"
""",
    "srt/managers/mm_schedule": """
embedding_cache = None
host_offload_event = None


class Cache:
    def __init__(self, max_size):
        self.max_size = max_size
        self.rows = {1: "rows"}

    def clear(self):
        self.rows.clear()


def init_mm_embedding_cache(max_size=0):
    global embedding_cache
    embedding_cache = Cache(max_size)


def _can_skip_pre_embed_feature_move(function):
    return getattr(function, "moves", False)
""",
    "srt/managers/schedule_batch": """
class Req:
    def extend_image_inputs(self, image_inputs):
        self.multimodal_inputs = image_inputs
""",
    "srt/managers/scheduler": """
from types import SimpleNamespace

import sglang.srt.managers.mm_schedule, sglang.srt.managers.mm_utils, sglang.srt.managers.schedule_batch
import sglang.srt.managers.scheduler_components.weight_updater


class Scheduler:
    def __init__(self, server_args=None):
        self.is_idle = True
        self.waiting_queue = []

    def _add_request_to_queue(self, req, is_retracted=False):
        self.waiting_queue.append(req)

    def get_new_batch_prefill(self, running_batch):
        for req in self.ready_grammars:
            self._add_request_to_queue(req)
        admitted = self.waiting_queue[:1]
        self.waiting_queue = self.waiting_queue[1:]
        return SimpleNamespace(batch_to_run=admitted or None, running_batch=running_batch)

    ready_grammars = ()

    def run_batch(self, batch, pp_proxy_tensors=None):
        return batch

    def flush_cache(self, empty_cache=True):
        return self.is_idle

    def get_internal_state(self, recv_req):
        return SimpleNamespace(internal_state={"world_size": 1})
""",
    "srt/managers/scheduler_components/weight_updater": """
class SchedulerWeightUpdaterManager:
    def update_weights_from_disk(self, recv_req):
        if recv_req == "fails":
            raise OSError("not found")
        return True

    def update_weights_from_distributed(self, recv_req): return True
    def update_weights_from_tensor(self, recv_req): return True
    def update_weights_from_ipc(self, recv_req): return True
    def end_weight_update(self, recv_req): return True
""",
}


def write(folder: Path, changed: dict[str, str] | None = None) -> None:
    """Write the modules below a folder. `changed` has the text of some of them."""
    for name, text in {**SOURCES, **(changed or {})}.items():
        path = folder / "sglang" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in [folder / "sglang", *(folder / "sglang").rglob("*")]:
        if path.is_dir():
            (path / "__init__.py").touch()


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """The modules of a folder can be imported. At the end they and all finders of the block are removed."""
    finders = list(sys.meta_path)
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if is_fake(name)}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.meta_path[:] = finders
        for name in [name for name in sys.modules if is_fake(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def is_fake(name: str) -> bool:
    return name.partition(".")[0] == "sglang"
