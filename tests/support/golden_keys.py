"""Golden keys: the inputs that the files in tests/keys/golden/ describe, and the keys of these inputs.

    PYTHONPATH=.:tests/support .venv/bin/python -m golden_keys --write

adds the keys of new cases to the files. It refuses to change or to drop a key: keys of one version are fixed.

Inputs are described in JSON, and made by arithmetic alone. A value is null, true, false, a string, a list, or
an object with one of these names:

    {"int": decimal}, {"float": C99 hexadecimal, inf or nan}, {"hex": bytes}, {"tuple": values}
    {"dict": [[key, value], ...]}, in the order of insertion
    {"bytes": length, "first": f, "step": s, "kind": kind}: byte i is (f + s * i) mod 256
    {"array": dtype, "shape": shape, "first": f, "step": s, "kind": kind, "views": views}

The bits of element i of an array, in C order, are (f + s * i) modulo the number of values of its bits; two
elements are the real and the imaginary part of one complex element; a bool is (f + s * i) mod 2. Views are
applied in order: {"slice": [start, stop, step] per axis}, {"axes": permutation}, {"expand": shape},
{"item": index per axis}, {"conj": true}, {"imag": true}.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_cases import CASES
from torch import Tensor

from vitcache import Namespace, content_key, key_from_id
from vitcache.keys import digests
from vitcache.keys.content import FORM
from vitcache.keys.folding import fold_keys
from vitcache.keys.parts import frame, part_keys

FOLDER = Path(__file__).parents[1] / "keys/golden"
ALGORITHMS = ("blake3", "sha256")
_BUFFERS = {"bytes": bytes, "bytearray": bytearray, "memoryview": memoryview}


def key_of(call: dict[str, Any]) -> bytes:
    """Return the key of a described call."""
    name, options = call["call"], {}
    if "namespace" in call:
        options["namespace"] = value_of(call["namespace"])
    if name == "Namespace.digest":
        return options["namespace"].digest()
    if name == "key_from_id":
        return key_from_id(value_of(call["identifier"]), **options)
    if name == "fold_keys":
        [key] = fold_keys([value_of(call["key"])], options["namespace"])
        return key
    if name == "part_keys":
        tensor, bounds, shape = value_of(call["tensor"]), tuple(call["bounds"]), tuple(call["shape"])
        framed = frame(value_of(call["extra"]))
        [key] = part_keys(tensor, [bounds], [shape], [framed], options["namespace"])
        return key
    assert name == "content_key"
    if "extra" in call:
        options["extra"] = value_of(call["extra"])
    return content_key(value_of(call["feature"]), **options)


def value_of(described: Any) -> Any:
    """Return the described value."""
    if isinstance(described, list):
        return [value_of(part) for part in described]
    if not isinstance(described, dict):
        return described
    match next(iter(described)):
        case "int":
            return int(described["int"])
        case "float":
            return float.fromhex(described["float"])
        case "hex":
            return bytes.fromhex(described["hex"])
        case "tuple":
            return tuple(value_of(part) for part in described["tuple"])
        case "dict":
            return {name: value_of(part) for name, part in described["dict"]}
        case "Namespace":
            return Namespace(**{name: value_of(field) for name, field in described["Namespace"].items()})
        case "bytes":
            return _buffer(**described)
        case "array":
            return _array(**described)
    raise ValueError(f"unknown description {described}")


def _buffer(bytes: int, first: int, step: int, kind: str = "bytes") -> Any:
    data = bytearray((first + step * index) % 256 for index in range(bytes))
    if kind == "memoryview with gaps":
        wide = bytearray(2 * bytes)
        wide[::2] = data
        return memoryview(wide)[::2]
    return _BUFFERS[kind](data)


def _array(
    array: str, shape: list[int], first: int, step: int, kind: str = "array", views: tuple[Any, ...] = ()
) -> Any:
    dtype = getattr(torch, array)
    parts = 2 if dtype.is_complex else 1
    size = dtype.itemsize // parts
    bits = np.arange(parts * math.prod(shape), dtype=np.uint64) * np.uint64(step) + np.uint64(first)
    if dtype == torch.bool:
        bits %= np.uint64(2)
    data = torch.from_numpy(bits.astype(f"u{size}").view(np.uint8)).view(dtype).view(shape)
    value: Any = data if kind in ("tensor", "parameter") else data.numpy()
    if kind == "big-endian array":
        value = value.astype(value.dtype.newbyteorder(">"))
    elif kind == "scalar":
        value = value[()]
    for view in views:
        value = _view(value, view)
    return torch.nn.Parameter(value) if kind == "parameter" else value


def _view(value: Any, view: dict[str, Any]) -> Any:
    [(name, argument)] = view.items()
    if name == "slice":
        return value[tuple(slice(*bounds) for bounds in argument)]
    if name == "axes":
        return value.permute(argument) if isinstance(value, Tensor) else value.transpose(argument)
    if name == "expand":
        return value.expand(argument) if isinstance(value, Tensor) else np.broadcast_to(value, argument)
    if name == "item":
        return value[tuple(argument)]
    return {"conj": torch.conj, "imag": torch.imag}[name](value)


def read_golden(algorithm: str) -> dict[str, Any]:
    """Return the content of an algorithm's file."""
    return json.loads((FOLDER / f"{algorithm}.json").read_text())


def write_golden() -> None:
    """Write both files, or none: exits if the key of a case that is in a file would change or be dropped."""
    texts = {}
    for algorithm in ALGORITHMS:
        digests.ALGORITHM = algorithm
        path = FOLDER / f"{algorithm}.json"
        old = read_golden(algorithm) if path.exists() else {"version": FORM, "cases": []}
        fixed = {case["name"]: case["key"] for case in old["cases"]} if old["version"] == FORM else {}
        cases = [{"name": name, "input": call, "key": key_of(call).hex()} for name, call in CASES.items()]
        keys = {case["name"]: case["key"] for case in cases}
        for name, key in fixed.items():
            if name not in keys:
                sys.exit(f"the case {name!r} of {path.name} is missing: its key must stay")
            if keys[name] != key:
                sys.exit(f"the key of {name!r} has changed: the new form needs a version of its own")
        lines = ",\n".join(f"  {json.dumps(case)}" for case in cases)
        texts[path] = f'{{"version": "{FORM}", "algorithm": "{algorithm}", "cases": [\n{lines}\n]}}\n'
    FOLDER.mkdir(exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {Path(__file__).name} --write")
    write_golden()
