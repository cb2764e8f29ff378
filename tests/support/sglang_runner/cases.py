"""The engines of SGLang that `make engines` runs. Each is one process; several tests may use its result."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_runner.cases import STORE
from engine_runner.pool import SUPPORT

from sglang_runner.plug_ins import PLUG_INS

CHUNK = 64
REMOVED = ("SGLANG_", "VITCACHE_", "TRITON_", "HF_", "CUDA_")


@dataclass(frozen=True)
class Case:
    """One engine: its plug-ins and requests.

    `steps` are functions of `child`, called in order. `environment` adds variables, and `options` replaces
    options of `Engine`. `tiers`: the options of a plug-in with a tier below the host tier. The program gives
    a disk its folder, and a store its address.
    """

    name: str
    plug_ins: tuple[str, ...] = ("vitcache", "probe")
    steps: tuple[str, ...] = ("chat",)
    model: str = "qwen3"
    limit_s: float = 150
    environment: dict[str, str] = field(default_factory=dict, hash=False)
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    tiers: dict[str, Any] = field(default_factory=dict, hash=False)

    def variables(self) -> dict[str, str]:
        """The environment variables of the process, beside those of every engine."""
        return {"SGLANG_PLUGINS": ",".join(self.plug_ins), **self.environment}


def environment(folder: Path) -> dict[str, str]:
    """The environment variables of every engine of SGLang. All files that SGLang writes are in `folder`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(REMOVED)}
    paths = (str(SUPPORT), str(folder / PLUG_INS), own.get("PYTHONPATH"))
    return {
        **own,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "SGLANG_CACHE_DIR": str(folder / "cache"),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


CHUNK_OF_BAD = 256
# SGLang would wait for a minute for dumps of its processes when a scheduler ends.
NO_DUMPS = {"SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0", "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0"}
PATIENT = ("vitcache", "probe", "patient")
DISK = {"host_bytes": "16 MiB", "disk_bytes": "64 MiB", "weights_name": "first"}
STORED = {"host_bytes": "16 MiB", "mooncake": STORE, "mooncake_worth": None, "weights_name": "first"}
STEPS = ("chat", "swapped", "together", "prefix", "flush")


def bad(name: str, **options: Any) -> Case:
    """An engine with an image that fails. Its other large images are encoded alone, so that the last bits of
    their rows do not depend on the images that are encoded beside them.
    """
    return Case(
        name,
        ("vitcache", "probe", "faults"),
        ("bad", "forms", "sent", "session"),
        limit_s=300,
        environment={"VITCACHE_SGLANG_OPTIONS": '{"max_rows_per_encode":40}'},
        options={"chunked_prefill_size": CHUNK_OF_BAD, **options},
    )


def ranks(name: str, plug_ins: tuple[str, ...], *steps: str, tiers: dict[str, Any] | None = None) -> Case:
    """An engine of two tensor parallel ranks."""
    # SGLang wants a NUMA node for each rank on a CPU, unless its cores are given.
    environment = {"SGLANG_CPU_OMP_THREADS_BIND": "0|0"}
    return Case(
        name, plug_ins, steps, limit_s=300, environment=environment, options={"tp_size": 2}, tiers=tiers or {}
    )


CASES = {
    case.name: case
    for case in (
        Case("stock", ("probe",), (*STEPS, "reload")),
        Case("vitcache", steps=(*STEPS, "seen", "reload")),
        Case("disabled", environment={"VITCACHE_DISABLE": "1"}),
        Case("renamed-function", ("vitcache", "rename")),
        # As on a GPU: the next step begins before the result of a step is processed.
        bad("bad", disable_overlap_schedule=False),
        bad("bad-in-turn"),
        Case("bad-stock", ("probe", "faults"), ("death",), limit_s=300, environment=NO_DUMPS),
        Case("disk", PATIENT, steps=("kept", "restarted"), limit_s=300, tiers=DISK),
        Case("disk-renamed", PATIENT, steps=("kept", "renamed"), limit_s=300, tiers=DISK),
        ranks("stock-ranks", ("probe",), "chat", "new"),
        ranks("ranks", ("vitcache", "probe"), "chat", "cleared", "broken", "new"),
        ranks("disk-ranks", PATIENT, "kept", "restarted", tiers=DISK),
        Case("store-first", PATIENT, steps=("kept",), limit_s=300, tiers=STORED),
        Case("store-second", PATIENT, steps=("found",), limit_s=300, tiers=STORED),
        ranks("store-ranks", PATIENT, "kept", "restarted", tiers=STORED),
        Case("store-alone", steps=("chat",), limit_s=300, tiers=STORED | {"mooncake": "127.0.0.1:9"}),
    )
}
