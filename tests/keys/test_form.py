"""Keys computed from the text of `vitcache.keys.content` alone equal the keys of the package."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any

import blake3
import numpy as np
import pytest
import torch
from golden_cases import CASES
from golden_keys import ALGORITHMS, key_of, value_of

from vitcache import Namespace
from vitcache.keys import digests

HASHES: dict[str, Callable[[bytes], bytes]] = {
    "blake3": lambda data: blake3.blake3(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}


class Form:
    """An implementation of its own of the documented form: slow, and without anything of vitcache.keys."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.hash = HASHES[algorithm]
        self.digests: list[bytes] = []

    def version(self, form: str) -> bytes:
        return self.node("v", f"vitcache.{form}.{self.algorithm}".encode())

    @staticmethod
    def node(tag: str, payload: bytes) -> bytes:
        return tag.encode() + struct.pack("<Q", len(payload)) + payload

    def array(self, dtype: str, shape: tuple[int, ...], data: bytes) -> bytes:
        self.digests.append(self.hash(data))
        sizes = struct.pack(f"<Q{len(shape)}Q", len(shape), *shape)
        return self.node("a", dtype.encode()) + b"x" + sizes

    def feature(self, value: Any) -> bytes:
        if isinstance(value, list | tuple):
            return b"l" + struct.pack("<Q", len(value)) + b"".join(map(self.feature, value))
        if isinstance(value, bytes | bytearray | memoryview):
            return self.array("bytes", (len(value),), bytes(value))
        if isinstance(value, torch.Tensor):
            plain = value.detach().resolve_conj().resolve_neg().contiguous()
            data = bytes(plain.reshape(-1).view(torch.uint8).tolist())
            return self.array(str(value.dtype).split(".")[1], tuple(value.shape), data)
        data = np.array(value, order="C", dtype=value.dtype.newbyteorder("<")).tobytes()
        return self.array(value.dtype.name, value.shape, data)

    def value(self, value: Any) -> bytes:
        if value is None:
            return self.node("n", b"")
        if isinstance(value, bool):
            return self.node("t", bytes([value]))
        if isinstance(value, int):
            size = abs(value).bit_length() // 8 + 1
            return self.node("i", (value % (1 << (8 * size))).to_bytes(size, "little"))
        if type(value) is float:
            nan = b"\0\0\0\0\0\0\xf8\x7f"
            return self.node("f", struct.pack("<d", value) if value == value else nan)
        if isinstance(value, str):
            return self.node("s", value.encode("utf-8", "surrogatepass"))
        if isinstance(value, bytes):
            return self.node("b", value)
        if isinstance(value, list | tuple):
            return b"l" + struct.pack("<Q", len(value)) + b"".join(map(self.value, value))
        if isinstance(value, dict):
            names = sorted(value, key=lambda name: [ord(letter) for letter in name])
            inner = b"".join(self.value(name) + self.value(value[name]) for name in names)
            return b"d" + struct.pack("<Q", len(value)) + inner
        return self.feature(value)

    def namespace(self, value: bytes | Namespace) -> bytes:
        if isinstance(value, bytes):
            return value
        fields = {
            "model": value.model,
            "revision": value.revision,
            "processor": value.processor,
            "adapter": value.adapter,
            "dtype": value.dtype,
            "tenant": value.tenant,
            "epoch": value.epoch,
        }
        return self.hash(self.version("namespace.1") + self.value(fields))

    def key(self, call: dict[str, Any]) -> bytes:
        """Return the key of a described call."""
        namespace = self.namespace(value_of(call.get("namespace", {"hex": ""})))
        space = self.node("b", namespace)
        match call["call"]:
            case "Namespace.digest":
                return namespace
            case "key_from_id":
                return self.hash(
                    self.version("identifier.1") + space + self.value(value_of(call["identifier"]))
                )
            case "fold_keys":
                return self.hash(self.version("given.1") + space + self.node("b", value_of(call["key"])))
            case "part_keys":
                first, last = call["bounds"]
                feature = value_of(call["tensor"]).reshape(-1)[first:last].reshape(call["shape"])
            case _:
                feature = value_of(call["feature"])
        nodes = self.version("content.2") + self.feature(feature) + space
        nodes += self.value(value_of(call.get("extra")))
        return self.hash(nodes + b"".join(self.digests))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_equal_those_of_an_implementation_of_the_documented_form(
    algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "ALGORITHM", algorithm)
    different = [name for name, call in CASES.items() if Form(algorithm).key(call) != key_of(call)]
    assert different == []
