"""Run the full cases of the GPU benches with small counts, and record the variants that they launch.

``TRITON_INTERPRET=1 python bench_launches.py FILE``. A bench that is bound to the CPU is omitted. Models keep
the widths, the levels and the dtype of their size; they have fewer layers and a smaller vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from launch_recorder import LaunchRecorder

from vitcache.bench.harness.record import Recorder
from vitcache.bench.harness.registry import cases_for
from vitcache.bench.harness.timing import Timer
from vitcache.bench.run import BENCHES, names_for
from vitcache.demo.model import SIZES

# By field of a case: its largest value in a run that only records variants. No variant depends on these.
COUNTS: dict[str, Any] = {
    "cached_images": 1,
    "cap_bytes": 1 << 30,
    "cards": 8,
    "cards_per_step": 8,
    "chats": 12,
    "constructed_bytes": 1 << 20,
    "decks": 1,
    "features": 1,
    "gap": 2,
    "height": 240,
    "image_bytes": 1 << 20,
    "images": 2,
    "items": 2,
    "layers": 1,
    "max_images": 2,
    "num_bytes": 1 << 20,
    "num_rows": 2,
    "passes": 1,
    "rows": 7,
    "turns": 2,
    "vocabulary": 97,
}
# By field: the value in place of any other.
REPLACED: dict[str, Any] = {
    "counts_bytes": True,
    "grid": (1, 8, 8),
    "lessons": ((1, 1),),
    "producers": (1,),
    "target": None,
    "threads": (1,),
}
# Fields that keep their value: a variant depends on them, or their value costs no time.
KEPT = frozenset(
    {
        "blocks",
        "chunk_tokens",
        "hidden",
        "keeps_kv",
        "levels",
        "max_rows",
        "model",
        "name",
        "size",
        "warps",
        "width",
    }
)


# The benches of a GPU that place no rows.
WITHOUT_LAUNCHES = frozenset({"keys", "ring"})
# The benches whose launches run in processes of another package. tests/gpu/test_vllm_placement.py has the
# variants of the bench `engines`: rows of Qwen3-VL-8B. The benches of SGLang need it, and place
# rows of the same width and dtype.
IN_ENGINES = frozenset({"engines", "sglang", "sglang_chat"})


def shrink(case: Any) -> Any:
    """The case with small counts. Raises TypeError for a field of which nothing is known."""
    changes = {}
    for field in fields(case):
        value = getattr(case, field.name)
        if field.name in REPLACED:
            changes[field.name] = REPLACED[field.name]
        elif field.name in COUNTS:
            changes[field.name] = value and min(value, COUNTS[field.name])
        elif field.name not in KEPT:
            raise TypeError(
                f"{type(case).__name__} has a field {field.name}: add it to COUNTS, REPLACED or KEPT of "
                f"{Path(__file__).name}, by whether the variant of a launch depends on it"
            )
    return replace(case, **changes)


def shrink_model(size: Any) -> Any:
    """The shape of a model with the same rows: width, number of levels and dtype."""
    tiny = SIZES["tiny"]
    width, levels = size.text["hidden_size"], len(size.vision["deepstack_visual_indexes"])
    return replace(
        size,
        text={
            **size.text,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": tiny.text["vocab_size"],
        },
        vision={**tiny.vision, "out_hidden_size": width, "deepstack_visual_indexes": list(range(levels))},
        special_tokens=tiny.special_tokens,
    )


@contextmanager
def small_models() -> Iterator[None]:
    sizes = dict(SIZES)
    SIZES.update({name: shrink_model(size) for name, size in sizes.items()})
    try:
        yield
    finally:
        SIZES.update(sizes)


def recorded_benches() -> list[str]:
    """The benches whose launches are recorded."""
    return [name for name in names_for("cuda") if name not in IN_ENGINES]


def gpu_cases() -> Iterator[tuple[Any, str, Any]]:
    """Each bench that runs on a GPU, with the name of each full case and the shrunk case.

    A case that shrinks to an earlier one is omitted.
    """
    for name in recorded_benches():
        bench = BENCHES[name]
        seen = []
        for case in cases_for(bench.CASES["full"], "full", "cuda"):
            small = shrink(case)
            values = [getattr(small, field.name) for field in fields(small) if field.name != "name"]
            if (type(small), values) not in seen:
                seen.append((type(small), values))
                yield bench, case.name, small


def main(path: Path) -> None:
    current = "no bench"
    recorder = LaunchRecorder(lambda: current)
    recorder.install()
    device = torch.device("cpu")
    with small_models(), TemporaryDirectory() as results:
        for bench, name, case in gpu_cases():
            current = f"{bench.NAME} {name}"
            print(current, flush=True)
            rows = Recorder(bench.NAME, Path(results), device)
            for _ in bench.run_case(case, rows, Timer(device, 1)):
                pass
    silent = set(recorded_benches()) - {label.split()[0] for label in recorder.launchers}
    if silent != WITHOUT_LAUNCHES:
        raise RuntimeError(f"the benches {sorted(silent)} launched nothing, expected {set(WITHOUT_LAUNCHES)}")
    recorder.save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
