"""Content keys are equal for equal content, differ for different content, and never change."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import struct
import subprocess
import sys
from typing import Any

import blake3
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcache.keys import content, digests
from vitcache.keys.content import content_key
from vitcache.keys.namespace import Namespace, to_namespace
from vitcache.keys.parts import frame

ALGORITHMS = ("blake3", "sha256")


@pytest.fixture(params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(digests, "ALGORITHM", request.param)
    return request.param


DTYPES = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]
WITHOUT_NUMPY_TWIN = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)


# Different content gives different keys

# fmt: off
EXTRAS: list[Any] = [
    None, True, False, 0, 1, -1, 127, 128, 255, 256, -128, -129, 1 << 63, 1 << 64, -(1 << 64),
    0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 5e-324,
    "", "a", "1", "True", "None", "\x00", "\ud800", "\u00e9", "e\u0301", b"", b"a", b"1", b"\x00", bytes(2),
    [], [[]], [[], []], [None], {}, [{}], {"": None}, {"a": None}, {"a": {}}, {"a": []},
    [1, 2], [2, 1], [[1], 2], [1, [2]], [[1, 2]], ["12"], ["1", "2"], ["", "12"], ["12", ""], [b"1", "2"],
    {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"ab": 12}, {"a": {"b": 2}}, ["a", 1, "b", 2], [["a", 1], ["b", 2]],
    np.float32(1), np.float64(1), np.int64(1), np.int32(1), np.bool_(True), np.array([1.0]), np.ones((1, 1)),
    np.zeros(0), np.zeros((0, 1)), np.zeros((1, 0)), torch.tensor(0.0), torch.tensor(-0.0),
    torch.zeros(2).bfloat16(), torch.zeros(2).half(), torch.zeros(2).short(),
    np.array([1, 2]), np.array([[1, 2]]), torch.tensor([[1], [2]]), np.array([True, False]), [True, False],
]
FEATURES: list[Any] = [
    b"", b"\x00", b"a", b"ab", [], [[]], [b""], [b"", b""], [b"a", b"b"], [[b"a"], b"b"], [b"ab"],
    [b"", b"ab"], [b"ab", b""], [[b"ab"], b""], [[b"ab", b""]],
    np.frombuffer(b"ab", np.uint8), np.frombuffer(b"ab", np.int8), np.frombuffer(b"ab", np.uint16),
    np.array(1.0), np.array([1.0]), np.array([[1.0]]), np.array(0.0), np.array(-0.0), np.array(math.nan),
    np.zeros(0), np.zeros((0, 2)), np.zeros((2, 0)), np.zeros((0, 0)), np.zeros(0, np.float32),
    np.zeros(0, bool),
    BASE, BASE.T, BASE.reshape(6, 4), BASE.reshape(24), BASE.reshape(1, 4, 6), BASE.reshape(4, 6, 1),
    BASE[:, :-1], BASE[::-1], BASE[:, ::-1], BASE[:-1], [BASE], [BASE, BASE], list(BASE),
    BASE.astype(np.float64), BASE.astype(np.int32), BASE.view(np.int32), BASE.view(np.uint32),
    torch.from_numpy(BASE).bfloat16(), torch.from_numpy(BASE).half(), BASE.astype(np.complex64),
    torch.from_numpy(BASE).bfloat16().view(torch.int16), torch.from_numpy(BASE).half().view(torch.int16),
    torch.from_numpy(BASE).to(torch.float8_e4m3fn).view(torch.uint8), BASE.tobytes(), BASE.view(np.uint8),
    BASE.reshape(2, 2, 6), BASE.reshape(4, 2, 3).transpose(0, 2, 1), BASE.reshape(4, 2, 3),
    [BASE[:2], BASE[2:]], BASE.byteswap(), np.where(BASE == 0, np.float32(-0.0), BASE), [BASE, b""],
    [BASE.tobytes()],
    torch.from_numpy(BASE).to(torch.float8_e4m3fn), torch.from_numpy(BASE).to(torch.float8_e5m2),
    *(torch.zeros(8, dtype=dtype) for dtype in DTYPES + WITHOUT_NUMPY_TWIN),
]
# fmt: on


def nearly_equal_calls() -> list[tuple[str, Any, dict[str, Any]]]:
    """Name, feature and options of calls. Any two calls differ in content, often by very little."""
    calls: list[tuple[str, Any, dict[str, Any]]] = [
        ("a in b", b"a", {"namespace": b"b"}),
        ("b in a", b"b", {"namespace": b"a"}),
        ("b with a", b"b", {"extra": b"a"}),
        ("[a] with [b]", [b"a"], {"extra": [b"b"]}),
    ]
    # The bytes of these arrays are hashed apart: only the nodes tell where an array is.
    one, two = np.array([1, 2], np.int16), np.array([3, 4], np.int16)
    for feature, extra in ((one, two), (two, one), ([one], [two]), ([one, two], []), ([two, one], [])):
        calls.append((f"{feature} with {extra}", feature, {"extra": extra}))
    for feature, extra in (([one], [one, two]), ([one, one], [two]), (one, [one, two]), ([one, [one]], two)):
        calls.append((f"{feature} with {extra}", feature, {"extra": extra}))
    calls.append(("a digest", digests.digest_of(b"feature"), {}))
    calls.append(("a digest in extra", b"feature", {"extra": digests.digest_of(b"feature")}))
    for namespace in (b"\x00", b"a", b"ab", bytes(32), Namespace("m").digest()):
        calls.append((f"namespace {namespace!r}", b"feature", {"namespace": namespace}))
    calls += [(f"extra {extra!r}", b"feature", {"extra": extra}) for extra in EXTRAS]
    calls += [(f"feature {feature!r}", feature, {}) for feature in FEATURES]
    for index in range(BASE.size):
        flipped = BASE.copy()
        flipped.reshape(-1).view(np.uint32)[index] ^= 1
        calls.append((f"bit of element {index}", flipped, {}))
    return calls


def test_content_key_of_inputs_with_a_small_difference_differs(algorithm: str) -> None:
    seen: dict[bytes, str] = {}
    for name, feature, options in nearly_equal_calls():
        key = content_key(feature, **options)
        assert len(key) == 32
        assert key not in seen, f"the key of {name} equals that of {seen[key]}"
        seen[key] = name


def test_content_key_differs_between_the_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name in ALGORITHMS:
        monkeypatch.setattr(digests, "ALGORITHM", name)
        found[name] = {content_key(feature, **options) for _, feature, options in nearly_equal_calls()}
    assert not found["blake3"] & found["sha256"]


def test_content_key_depends_on_the_name_of_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    key, digest = content_key(BASE), Namespace("m").digest()
    monkeypatch.setattr(digests, "ALGORITHM", "sha256")
    monkeypatch.setitem(digests._HASHERS, "sha256", blake3.blake3)
    assert content_key(BASE) != key
    assert Namespace("m").digest() != digest


# Equal content gives equal keys


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_content_key_of_a_tensor_equals_that_of_an_array_of_any_byte_order(dtype: torch.dtype) -> None:
    tensor = (torch.arange(24) % (2 if dtype == torch.bool else 24)).view(2, 3, 4).to(dtype)
    array = tensor.numpy()
    swapped = array.astype(array.dtype.newbyteorder())
    key = content_key(tensor)
    assert content_key(array) == key
    assert content_key(swapped) == key
    assert content_key(swapped[0, ::-1].T) == content_key(array[0, ::-1].T)


def layouts(tensor: torch.Tensor) -> dict[str, Any]:
    """Tensors equal to `tensor`, in other memory layouts."""
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), 7).to(tensor.dtype)
    wide[..., ::2] = tensor
    inside = torch.zeros(tensor.numel() + 3).to(tensor.dtype)
    inside[3:] = tensor.reshape(-1)
    return {
        "strided": wide[..., ::2],
        "transposed": tensor.transpose(0, 1).contiguous().transpose(0, 1),
        "channels first in memory": tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "at an odd offset": inside[3:].view(tensor.shape),
        "parameter": torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor,
    }


@pytest.mark.parametrize("dtype", DTYPES + WITHOUT_NUMPY_TWIN, ids=str)
def test_content_key_does_not_depend_on_the_memory_layout(dtype: torch.dtype) -> None:
    tensor = (torch.arange(24) % 13).view(2, 3, 4).to(dtype)
    for layout, other in layouts(tensor).items():
        assert content_key(other) == content_key(tensor), layout
        if dtype in DTYPES:
            assert content_key(other.detach().numpy()) == content_key(tensor), layout


def test_content_key_of_expanded_reversed_and_conjugated_views_is_by_value() -> None:
    row = torch.arange(5.0)
    assert content_key(row.expand(3, 5)) == content_key(row.repeat(3, 1))
    array = np.arange(12.0).reshape(3, 4)
    assert content_key(array[::-1, ::-2]) == content_key(array[::-1, ::-2].copy())
    assert content_key(np.broadcast_to(array, (2, 3, 4))) == content_key(np.stack([array, array]))
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    assert numbers.conj().is_conj()
    assert content_key(numbers.conj()) == content_key(numbers.conj().resolve_conj())
    assert numbers.conj().imag.is_neg()
    assert content_key(numbers.conj().imag) == content_key(numbers.conj().imag.resolve_neg())
    assert content_key(numbers.conj()) != content_key(numbers)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (1, 1, 1)])
def test_content_key_of_scalars_and_empty_arrays_agrees_in_numpy_and_torch(shape: tuple[int, ...]) -> None:
    assert content_key(np.ones(shape, np.float32)) == content_key(torch.ones(shape))


@pytest.mark.parametrize(
    "shape", [(3, 700_000), (700_000, 3), (5, 7, 60_000), (1, 2_100_000), (2_100_000,), (1, 1, 2_100_000)]
)
def test_content_key_of_a_large_strided_input_equals_the_contiguous_one(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 255, (*shape[:-1], 2 * shape[-1]), np.uint8)
    expected = content_key(np.ascontiguousarray(array[..., ::2]))
    assert content_key(array[..., ::2]) == expected
    assert content_key(torch.from_numpy(array)[..., ::2]) == expected
    turned = np.ascontiguousarray(array[..., ::2].T).T
    assert content_key(turned) == expected
    big = array[..., ::2].astype(">i2")
    assert content_key(big) == content_key(big.astype("<i2"))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_content_key_does_not_depend_on_num_threads(algorithm: str, num_threads: int) -> None:
    small, large = np.arange(10.0), np.arange(300_000.0).reshape(500, 600)
    for feature in (small, large, large[::-1, ::2], large.tobytes(), [large[:100], (large.tobytes(), small)]):
        assert content_key(feature, num_threads=num_threads) == content_key(feature)


@pytest.mark.parametrize(
    ("size", "threads"),
    [(digests.THREADED_BYTES - 1, 1), (digests.THREADED_BYTES, 3)],
    ids=["small", "large"],
)
def test_content_key_uses_threads_only_for_features_of_1_mib_or_more(
    monkeypatch: pytest.MonkeyPatch, size: int, threads: int
) -> None:
    requested = []

    def new_hash(*data: bytes, max_threads: int = 1) -> Any:
        requested.append(max_threads)
        return blake3.blake3(*data)

    monkeypatch.setitem(digests._HASHERS, "blake3", new_hash)
    for feature in (
        bytes(size),
        bytearray(size),
        memoryview(bytes(size)),
        torch.zeros(size, dtype=torch.uint8),
    ):
        content_key(feature, num_threads=3)
        content_key([feature[:9], (feature[9:],)], num_threads=3)
    assert requested == [threads, 1] * 8  # the arrays' bytes, then the nodes


class PanicException(BaseException):
    """The exception of a panic of Rust code has this name, and is not an Exception."""


def test_content_key_hashes_in_one_thread_if_blake3_cannot_start_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feature, requested = bytes(digests.THREADED_BYTES), []
    expected = content_key(feature)
    error: list[BaseException] = [PanicException("ThreadPoolBuildError")]

    def new_hash(*data: bytes, max_threads: int = 1) -> Any:
        requested.append(max_threads)
        if max_threads > 1:
            raise error[0]
        return blake3.blake3(*data)

    monkeypatch.setitem(digests._HASHERS, "blake3", new_hash)
    assert content_key(feature, num_threads=3) == expected
    assert requested == [3, 1, 1]
    for other in (KeyboardInterrupt(), MemoryError()):
        error[0] = other
        with pytest.raises(type(other)):
            content_key(feature, num_threads=3)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user, who has no threads yet")
def test_content_key_in_a_process_at_its_limit_of_threads() -> None:
    script = (
        "import os, resource; from vitcache import KeyThreads, content_key\n"
        "feature = bytes(2 << 20); key = content_key(feature)\n"
        "os.setgid(65534); os.setuid(65534); resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
        "threads = KeyThreads(4)\n"
        "print(content_key(feature, num_threads=4) == key == threads.submit(feature).result().key)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr


def test_content_key_of_bytes_does_not_depend_on_the_buffer_type() -> None:
    data = bytes(range(256)) * 20
    for buffer in (
        bytearray(data),
        memoryview(data),
        memoryview(bytearray(data)),
        memoryview(data).cast("b"),
    ):
        assert content_key(buffer) == content_key(data)
    doubled = bytes(byte for byte in data for _ in range(2))
    assert content_key(memoryview(doubled)[::2]) == content_key(data)
    assert content_key(memoryview((ctypes.c_ubyte * 4)(1, 2, 3, 4))) == content_key(bytes([1, 2, 3, 4]))


EQUAL_EXTRAS: list[tuple[Any, Any]] = [
    ({"a": 1, "b": [2, 3]}, {"b": (2, 3), "a": 1}),
    ([1, (2, [3])], (1, [2, (3,)])),
    ([], ()),
    (math.nan, -math.nan),
    (math.nan, struct.unpack("<d", b"\x01\x00\x00\x00\x00\x00\xf8\xff")[0]),
    (b"ab", bytearray(b"ab")),
    (np.arange(3), torch.arange(3)),
    (np.float32(2), torch.tensor(2.0)),
    ({"grid": torch.tensor([[1, 2, 3]])}, {"grid": np.array([[1, 2, 3]])}),
    (torch.Size([1, 2]), [1, 2]),
]


@pytest.mark.parametrize(("one", "other"), EQUAL_EXTRAS)
def test_content_key_of_equivalent_extras_is_equal(one: Any, other: Any) -> None:
    assert content_key(b"", extra=one) == content_key(b"", extra=other)


def test_content_key_of_a_list_equals_that_of_a_tuple() -> None:
    assert content_key([BASE, (b"a", BASE)]) == content_key((torch.from_numpy(BASE), [b"a", BASE]))


extra_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=3), values, max_size=4),
    max_leaves=8,
)


def canonical(value: Any) -> Any:
    """Return a value that compares equal exactly if two extras are equivalent."""
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else struct.pack("<d", value))
    if isinstance(value, list):
        return ("list", tuple(map(canonical, value)))
    if isinstance(value, dict):
        return ("dict", tuple((name, canonical(value[name])) for name in sorted(value)))
    return (type(value).__name__, value)


@settings(deadline=None)
@given(extra_values, extra_values)
def test_content_key_is_equal_exactly_for_equivalent_extras(one: Any, other: Any) -> None:
    same = canonical(one) == canonical(other)
    assert (content_key(b"", extra=one) == content_key(b"", extra=other)) == same


@settings(deadline=None)
@given(st.lists(st.binary(max_size=3), max_size=4), st.lists(st.binary(max_size=3), max_size=4))
def test_content_key_of_a_list_depends_on_the_boundaries_of_its_parts(
    one: list[bytes], other: list[bytes]
) -> None:
    assert (content_key(one) == content_key(other)) == (one == other)
    assert (content_key(b"", extra=one) == content_key(b"", extra=other)) == (one == other)


@settings(deadline=None)
@given(st.binary(max_size=4), st.binary(max_size=4), st.binary(max_size=4), st.binary(max_size=4))
def test_content_key_depends_on_the_boundary_of_namespace_and_feature(
    space: bytes, data: bytes, other: bytes, rest: bytes
) -> None:
    same = (space, data) == (other, rest)
    assert (content_key(data, namespace=space) == content_key(rest, namespace=other)) == same


# Unsupported arguments


class Image:
    pass


@pytest.mark.parametrize(
    ("feature", "match"),
    [
        (None, "feature must be an array, a tensor, bytes or a list of these, got NoneType"),
        ("photo.jpg", "feature must be .*, got str"),
        (3, "feature must be .*, got int"),
        (Image(), "feature must be .*, got Image"),
        ({"pixel_values": BASE}, "feature must be .*, got dict"),
        ([BASE, [BASE, None]], r"feature\[1\]\[1\] must be .*, got NoneType"),
        (lambda: BASE, "feature is a callable: call it and pass the result, or give the item a key"),
        (np.array([Image()]), "feature is a ndarray of dtype object"),
        (np.array(["a"]), "feature is a ndarray of dtype <U1"),
        (np.zeros(2, [("a", int)]), r"feature is a ndarray of dtype \[\('a'"),
        (np.zeros(2, "datetime64[s]"), "feature is a ndarray of dtype datetime64"),
        (np.zeros(2, np.longdouble), "feature is a ndarray of dtype float128"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "feature is a MaskedArray of dtype float64"),
        (torch.zeros(2, 2).to_sparse(), "feature is a tensor of layout torch.sparse_coo on cpu"),
        (torch.zeros(2, device="meta"), "feature is a tensor of layout torch.strided on meta"),
        (torch.zeros(2, dtype=torch.float8_e8m0fnu), "feature is a tensor of dtype torch.float8_e8m0fnu"),
        (memoryview(BASE), r"feature is a memoryview \(4, 6\) of 'f', it must be flat bytes"),
        (
            memoryview(np.zeros((2, 2), np.uint8)),
            r"feature is a memoryview \(2, 2\) of 'B', it must be flat bytes",
        ),
    ],
)
def test_content_key_of_an_unsupported_feature_is_a_type_error(feature: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        content_key(feature)


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (Image(), "extra is of type Image, which cannot be hashed"),
        ({"a": [0, 1, {1, 2}]}, r"extra\['a'\]\[2\] is of type set, which cannot be hashed"),
        ({"a": {"b": (1j,)}}, r"extra\['a'\]\['b'\]\[0\] is of type complex"),
        ({1: 2}, "extra has a key 1 of type int, keys must be str"),
        ({"a": {None: 2}}, r"extra\['a'\] has a key None of type NoneType, keys must be str"),
        ({"f": len}, r"extra\['f'\] is of type builtin_function_or_method"),
        ({"d": torch.float32}, r"extra\['d'\] is of type dtype"),
        ([np.array(["x"])], r"extra\[0\] is a ndarray of dtype <U1"),
    ],
)
def test_content_key_of_an_unsupported_extra_names_its_position(extra: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        content_key(b"", extra=extra)


class Name(str):
    """A str that equals no other str, and is encoded in its own way."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def encode(self, *arguments: Any) -> bytes:
        return b"other"


def test_content_key_of_a_dict_with_two_keys_of_one_text_is_a_type_error() -> None:
    assert content_key(b"", extra={Name("a"): 1}) == content_key(b"", extra={"a": 1})
    with pytest.raises(TypeError, match=r"^extra\['d'\] has two keys of the text 'a'$"):
        content_key(b"", extra={"d": {Name("a"): 1, Name("a"): 2}})


class Growing(list[Any]):
    """A list that has one part more when it is read than when it is counted, as if a thread had added it."""

    def __len__(self) -> int:
        return super().__len__() - 1


def test_content_key_of_a_list_that_changes_counts_the_parts_that_it_hashes() -> None:
    parts = [b"a", b"b"]
    assert content_key(Growing(parts)) == content_key(parts)
    assert content_key(b"", extra=Growing(parts)) == content_key(b"", extra=parts)


@pytest.mark.parametrize("namespace", ["model", bytearray(b"m"), None, Namespace, 3, True])
def test_content_key_with_a_namespace_of_a_wrong_type_is_a_type_error(namespace: Any) -> None:
    match = f"namespace must be bytes or a Namespace, got {type(namespace).__name__}"
    with pytest.raises(TypeError, match=match):
        content_key(b"", namespace=namespace)
    with pytest.raises(TypeError, match=match):
        to_namespace(namespace)


def test_content_key_in_a_namespace_object_equals_that_in_its_digest(algorithm: str) -> None:
    namespace = Namespace("m", tenant="a", epoch=3)
    assert to_namespace(namespace) == namespace.digest()
    assert to_namespace(namespace.digest()) == namespace.digest()
    assert to_namespace(b"") == b""
    assert content_key(BASE, namespace=namespace) == content_key(BASE, namespace=namespace.digest())
    assert content_key(BASE, namespace=namespace) != content_key(BASE, namespace=Namespace("m", tenant="b"))


@pytest.mark.parametrize(
    ("num_threads", "error", "match"),
    [
        (0, ValueError, "num_threads is 0, it must be at least 1"),
        (True, TypeError, "num_threads must be an int, got True of type bool"),
        (2.0, TypeError, "num_threads must be an int, got 2.0 of type float"),
    ],
)
def test_content_key_with_invalid_num_threads_raises(
    num_threads: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        content_key(b"", num_threads=num_threads)


@pytest.mark.parametrize(
    ("key", "error", "match"),
    [
        (bytearray(32), TypeError, "name must be bytes, got bytearray"),
        ("a" * 32, TypeError, "name must be bytes, got str"),
        (bytes(31), ValueError, "name has 31 bytes, it must have 32"),
    ],
)
def test_check_key_accepts_32_bytes_only(key: Any, error: type[Exception], match: str) -> None:
    content.check_key(content_key(b""))
    with pytest.raises(error, match=match):
        content.check_key(key, "name")


# Namespaces

FIELDS: dict[str, list[Any]] = {
    "model": ["m", "n", "mr", ""],
    "revision": ["", "r", "m"],
    "processor": ["", "r", "p"],
    "adapter": ["", "r", "p"],
    "dtype": ["", "r", "bfloat16"],
    "tenant": ["", "r", "0"],
    "epoch": [0, 1, 2],
}


def test_namespace_digest_depends_on_every_field_and_its_name(algorithm: str) -> None:
    seen = {}
    for first, second in itertools.combinations(FIELDS, 2):
        for one, two in itertools.product(FIELDS[first], FIELDS[second]):
            namespace = Namespace(**({"model": "m"} | {first: one, second: two}))
            seen.setdefault(namespace.digest(), set()).add(namespace)
    assert all(len(namespaces) == 1 for namespaces in seen.values())
    assert all(len(digest) == 32 for digest in seen)
    assert len(seen) > 50


def test_content_key_is_shared_by_equal_tenants_only() -> None:
    one, same, other = (Namespace("m", tenant=tenant).digest() for tenant in ("a", "a", "b"))
    assert content_key(BASE, namespace=one) == content_key(BASE, namespace=same)
    assert content_key(BASE, namespace=one) != content_key(BASE, namespace=other)


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"model": b"m"}, TypeError, "Namespace.model must be str, got bytes"),
        ({"model": "m", "dtype": torch.float32}, TypeError, "Namespace.dtype must be str, got dtype"),
        ({"model": "m", "tenant": None}, TypeError, "Namespace.tenant must be str, got NoneType"),
        ({"model": "m", "epoch": "1"}, TypeError, "Namespace.epoch must be int, got str"),
        ({"model": "m", "epoch": True}, TypeError, "Namespace.epoch must be int, got bool"),
        ({"model": "m", "epoch": -1}, ValueError, "Namespace.epoch is -1, it must be at least 0"),
    ],
)
def test_namespace_with_an_invalid_field_raises(
    fields: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        Namespace(**fields)


# Stability


def test_content_key_is_equal_in_every_process() -> None:
    script = "from vitcache.keys.content import *; print(content_key(b'x', extra={'b': 1, 'a': [2.0]}).hex())"
    expected = content_key(b"x", extra={"a": [2.0], "b": 1}).hex()
    for seed in ("0", "1"):
        result = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert result.stdout.strip() == expected


def test_content_key_without_blake3_uses_sha256(monkeypatch: pytest.MonkeyPatch) -> None:
    script = (
        "import sys; sys.modules['blake3'] = None\n"
        "from vitcache.keys import content, digests\n"
        "print(digests.ALGORITHM, content.content_key(b'vitcache').hex())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    monkeypatch.setattr(digests, "ALGORITHM", "sha256")
    assert result.stdout.split() == ["sha256", content_key(b"vitcache").hex()]


def test_content_key_of_a_value_that_contains_itself_is_a_value_error_that_names_it() -> None:
    feature: list[object] = [b"part"]
    feature.append(feature)
    extra: dict[str, object] = {}
    extra["again"] = [extra]
    with pytest.raises(ValueError, match=r"^feature contains itself, or is nested too deeply$"):
        content_key(feature)
    with pytest.raises(ValueError, match=r"^extra contains itself, or is nested too deeply$"):
        content_key(b"", extra=extra)
    with pytest.raises(ValueError, match=r"^extra contains itself"):
        frame(extra)
