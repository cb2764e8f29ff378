"""The cases of the golden files: calls by name, described as in `golden_keys`. All keys differ."""

from __future__ import annotations

from typing import Any

Described = dict[str, Any]

IN_NUMPY = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
IN_TORCH_ONLY = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
TENANT = {"Namespace": {"model": "m", "tenant": "a"}}


def array(dtype: str, *shape: int, first: int = 1, step: int = 37, **rest: Any) -> Described:
    return {"array": dtype, "shape": list(shape), "first": first, "step": step, **rest}


def data(length: int, kind: str = "bytes", first: int = 3, step: int = 7) -> Described:
    return {"bytes": length, "first": first, "step": step, "kind": kind}


def number(value: int) -> Described:
    return {"int": str(value)}


def real(value: float) -> Described:
    return {"float": value.hex()}


def pairs(**values: Any) -> Described:
    return {"dict": [[name, value] for name, value in values.items()]}


def content(feature: Any, **options: Any) -> Described:
    return {"call": "content_key", "feature": feature, **options}


def dtypes() -> dict[str, Described]:
    """Every dtype, as tensors and as arrays of either byte order, and with one element and no dimension."""
    cases = {}
    for dtype in IN_NUMPY + IN_TORCH_ONLY:
        cases[f"tensor of {dtype}"] = content(array(dtype, 2, 3, 4, kind="tensor"))
    for dtype in IN_NUMPY:
        swapped = "big-endian array" if dtype not in ("bool", "int8", "uint8") else "array"
        cases[f"{swapped} of {dtype}"] = content(array(dtype, 5, 2, step=101, kind=swapped))
    for dtype in ("bool", "int64", "uint8", "float32", "float64", "complex64"):
        cases[f"scalar of {dtype}"] = content(array(dtype, first=9, kind="scalar"))
    for dtype in IN_TORCH_ONLY:
        cases[f"tensor of {dtype} without dimensions"] = content(array(dtype, first=9, kind="tensor"))
    return cases


def shapes() -> dict[str, Described]:
    found = [(), (1,), (1, 1, 1, 1, 1, 1), (24,), (4, 6), (6, 4), (1, 24), (2, 12)]
    found += [(0,), (0, 3), (3, 0), (0, 0), (2, 0, 2), (3, 5, 7, 11), (2, 3, 2, 3, 2, 3, 2)]
    cases = {f"shape {list(shape)}": content(array("float32", *shape, first=7)) for shape in found}
    for dtype in ("uint8", "bfloat16", "bool"):
        cases[f"empty tensor of {dtype}"] = content(array(dtype, 0, 4, kind="tensor"))
    cases["array of 1,2 MB"] = content(array("float32", 300, 1000, step=2654435761))
    return cases


def strides() -> dict[str, Described]:
    """Views that are not contiguous, or whose bytes are not those in memory."""
    every = [None, None, None]
    reverse = [None, None, -1]
    second = [None, None, 2]
    views: dict[str, tuple[Described, list[Described]]] = {
        "transposed": (array("float32", 5, 3), [{"axes": [1, 0]}]),
        "permuted": (array("int16", 2, 3, 4), [{"axes": [2, 0, 1]}]),
        "reversed": (array("float64", 7, first=2), [{"slice": [reverse]}]),
        "reversed in both axes": (array("uint16", 3, 4), [{"slice": [reverse, reverse]}]),
        "every second column": (array("uint8", 4, 6), [{"slice": [every, second]}]),
        "every third row from the end": (array("float16", 9, 2), [{"slice": [[8, None, -3]]}]),
        "a column": (array("int64", 4, 5), [{"slice": [every, [2, 3, 1]]}]),
        "an inner block": (array("float32", 6, 7), [{"slice": [[1, 5, 1], [2, 6, 1]]}]),
        "broadcast": (array("float32", 3, 1), [{"expand": [2, 3, 4]}]),
        "broadcast scalar": (array("int32", first=77), [{"expand": [3, 3]}]),
        "one element of a larger array": (
            array("float64", 3, 3, step=11),
            [{"slice": [[1, 2, 1], [2, 3, 1]]}],
        ),
        "transposed and reversed": (
            array("complex64", 3, 4),
            [{"axes": [1, 0]}, {"slice": [every, reverse]}],
        ),
        "empty slice": (array("uint32", 4, 4), [{"slice": [[2, 2, 1]]}]),
        "several blocks": (array("uint8", 3, 1_500_000, step=13), [{"slice": [every, second]}]),
    }
    cases = {f"array, {name}": content({**base, "views": steps}) for name, (base, steps) in views.items()}
    base = array("float32", 6, 4, first=5, kind="big-endian array")
    cases["big-endian array, transposed"] = content({**base, "views": [{"axes": [1, 0]}]})
    of_tensors: dict[str, tuple[Described, list[Described]]] = {
        "transposed": (array("bfloat16", 5, 3), [{"axes": [1, 0]}]),
        "permuted": (array("float32", 2, 3, 4, step=3), [{"axes": [1, 2, 0]}]),
        "every second column": (array("float8_e4m3fn", 4, 6), [{"slice": [every, second]}]),
        "from an odd offset": (array("float16", 9), [{"slice": [[3, None, 1]]}]),
        "expanded": (array("int32", 1, 3), [{"expand": [4, 3]}]),
        "conjugated": (array("complex64", 3, 2, step=5), [{"conj": True}]),
        "negated": (array("complex128", 3, 2, step=5), [{"conj": True}, {"imag": True}]),
        "an element": (array("bfloat16", 3, 4), [{"item": [2, 1]}]),
    }
    for name, (base, steps) in of_tensors.items():
        cases[f"tensor, {name}"] = content({**base, "kind": "tensor", "views": steps})
    cases["parameter"] = content(array("float32", 3, 4, step=12345, kind="parameter"))
    return cases


def files() -> dict[str, Described]:
    sizes = (0, 1, 32, 33, 64, 65, 1023, 1024, 1025, 100_000)
    cases = {f"{size} bytes": content(data(size)) for size in sizes}
    for number_of, kind in enumerate(("bytearray", "memoryview", "memoryview with gaps")):
        cases[f"a {kind}"] = content(data(200 + number_of, kind))
    return cases


def lists() -> dict[str, Described]:
    small = array("float32", 2, 2)
    parts: dict[str, Any] = {
        "empty": [],
        "empty in a list": [[]],
        "two empty": [[], []],
        "of empty bytes": [data(0)],
        "of bytes": [data(2), data(3)],
        "of nested bytes": [[data(2)], data(3)],
        "of an array": [small],
        "of an array twice": [small, small],
        "of a list of an array twice": [[small, small]],
        "tuple of an array and bytes": {"tuple": [small, data(1)]},
        "of every kind": [[data(5), [small]], array("bool", 3, kind="tensor"), array("int8", kind="scalar")],
    }
    return {f"list, {name}": content(feature) for name, feature in parts.items()}


def extras() -> dict[str, Described]:
    grid = array("int64", 1, 3, first=4, kind="tensor")
    numbers = [0, 1, -1, 127, 128, 255, -128, -129, 1 << 63, -(1 << 64), 1 << 200]
    reals = [0.0, -0.0, 1.5, -1e300, 5e-324, float("inf"), float("-inf"), float("nan")]
    values: dict[str, Any] = {
        "true": True,
        "false": False,
        **{f"int {value}": number(value) for value in numbers},
        **{f"float {value}": real(value) for value in reals},
        "empty str": "",
        "str": "abc",
        "one letter with an accent": "\u00e9",
        "a letter and an accent": "e\u0301",
        "surrogate": "\ud800",
        "character outside of the first plane": "\U0001f600",
        "zero character": "\x00",
        "empty bytes": {"hex": ""},
        "bytes": {"hex": "616263"},
        "empty list": [],
        "list": [number(1), "1", {"hex": "31"}, True, real(1.0), None],
        "nested tuple": {"tuple": [number(1), {"tuple": [number(2)]}]},
        "empty dict": pairs(),
        "dict in another order": pairs(b=number(1), a=[number(2), None]),
        "dict with keys beyond ASCII": {"dict": [["\U0001f600", None], ["\uffff", None], ["\u00e9", None]]},
        "nested dict": pairs(a=pairs(b=pairs(c=[])), d=pairs()),
        "array": array("float32", 2, 2),
        "scalar": array("float64", kind="scalar"),
        "tensor": grid,
        "transposed tensor": array("float32", 2, 3, kind="tensor", views=[{"axes": [1, 0]}]),
        "empty array": array("float32", 0),
        "options of an encoder": pairs(grid_thw=grid, layers=[number(8), number(16)], modality="image"),
        "every type": pairs(
            z=[None, True, number(-5), real(0.1), "s", {"hex": "ff"}, array("uint8", 2), grid],
            a=pairs(x={"tuple": []}, w=array("bfloat16", 2, 2, kind="tensor")),
        ),
    }
    feature = array("uint8", 4, 4, first=11)
    cases = {f"extra, {name}": content(feature, extra=value) for name, value in values.items()}
    several = {
        "feature": [array("int16", 3), array("int16", 4)],
        "extra": [array("int16", 5), array("int16", 6)],
    }
    cases["extra, arrays behind those of a list"] = content(several["feature"], extra=several["extra"])
    return cases


def namespaces() -> dict[str, Described]:
    fields: list[dict[str, Any]] = [
        {"model": "m"},
        {"model": ""},
        {"model": "m", "revision": "r"},
        {"model": "m", "processor": "r"},
        {"model": "m", "adapter": "r"},
        {"model": "m", "dtype": "r"},
        {"model": "m", "tenant": "a"},
        {"model": "m", "tenant": "b"},
        {"model": "m", "epoch": number(1)},
        {"model": "m", "epoch": number(256)},
        {"model": "\u00e9", "revision": "r", "processor": "p", "adapter": "a", "dtype": "d", "tenant": "t"},
    ]
    feature = array("float32", 2, 2, first=21)
    cases = {
        f"namespace {' '.join(f'{key}={name}' for key, name in described.items())}": content(
            feature, namespace={"Namespace": described}
        )
        for described in fields
    }
    for text in ("00", "6d", "6d6d", 32 * "00", 300 * "5a"):
        name = f"namespace of {len(text) // 2} bytes {text[:4]}"
        cases[name] = content(feature, namespace={"hex": text})
    for described in (fields[0], fields[6], fields[9], fields[10]):
        name = f"digest of the namespace {' '.join(map(str, described.values()))}"
        cases[name] = {"call": "Namespace.digest", "namespace": {"Namespace": described}}
    cases["extra in a tenant"] = content(feature, namespace=TENANT, extra=pairs(a=number(1)))
    return cases


def identifiers() -> dict[str, Described]:
    values: list[Any] = ["", "1", "\u00e9", 50 * "mm-hash-", {"hex": ""}, {"hex": "31"}, {"hex": 32 * "00"}]
    values += [number(value) for value in (0, 1, -1, 1 << 63, -(1 << 200))]
    cases = {f"identifier {value}"[:60]: {"call": "key_from_id", "identifier": value} for value in values}
    for name, space in (("bytes", {"hex": "6d"}), ("a tenant", TENANT)):
        cases[f"identifier in {name}"] = {"call": "key_from_id", "identifier": "1", "namespace": space}
    return cases


def folded() -> dict[str, Described]:
    keys = [{"hex": 32 * "00"}, {"hex": 32 * "01"}]
    spaces: dict[str, Any] = {"bytes": {"hex": "6d"}, "a tenant": TENANT}
    found = [(name, space, key) for name, space in spaces.items() for key in keys]
    found.append(("32 bytes", {"hex": 32 * "00"}, {"hex": 32 * "5a"}))
    return {
        f"key of {key['hex'][:2]} folded in {name}": {"call": "fold_keys", "key": key, "namespace": space}
        for name, space, key in found
    }


def parts() -> dict[str, Described]:
    options = pairs(modality="image", item=[number(1), number(4), number(4)], options=pairs())
    bounds = [([0, 8], [2, 4]), ([8, 20], [3, 4]), ([8, 8], [0, 4]), ([4, 16], [1, 3, 4])]
    return {
        f"part {start} to {end} of {dtype}": {
            "call": "part_keys",
            "tensor": array(dtype, 6, 4, step=9, kind="tensor"),
            "bounds": [start, end],
            "shape": shape,
            "extra": options,
            "namespace": TENANT,
        }
        for dtype in ("float32", "bfloat16")
        for (start, end), shape in bounds
    }


GROUPS = (dtypes, shapes, strides, files, lists, extras, namespaces, identifiers, folded, parts)
CASES = {name: call for group in GROUPS for name, call in group().items()}
