"""The file of one entry: its name, its size, and the 4096 bytes before the rows.

A file contains a header, the rows, and zeros up to a multiple of 4096 bytes. The header contains every field
of the `EntryName` and a checksum of the rows: the digest of the digests of their pieces. So a file that was
damaged or moved does not match its name. Numbers have the byte order of the machine: a machine of the other
order reads another byte-order mark.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable

from vitcache.keys.digests import ALGORITHM, digest_of, new_hasher
from vitcache.tiers.protocol import EntryName

BLOCK_BYTES = 4096  # alignment of memory, offsets and sizes in direct I/O
PIECE_BYTES = 512 << 10  # of rows that are hashed together
DIGEST_BYTES = 32

# Magic, layout, byte-order mark, algorithm; tenant, weights, key; rows, bytes of a row; checksum.
_FIELDS = struct.Struct("=8sII16s32s32s32sQQ32s")
_MAGIC, _LAYOUT, _BYTE_ORDER = b"VITCACHE", 1, 0x01020304
_ALGORITHM = slice(16, 32)
_CHECKSUM = slice(_FIELDS.size - DIGEST_BYTES, _FIELDS.size)
_PACKED = struct.Struct(">32s32s32sQQ")
_FILE_NAME = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{64})\.([0-9]{1,19})x([0-9]{1,19})")


def header_of(name: EntryName, checksum: bytes, algorithm: str | None = None) -> bytes:
    """Return the header of an entry, `BLOCK_BYTES` bytes. A checksum of fewer than 32 bytes gets zeros.

    `algorithm`: of the checksum; None: that of keys.
    """
    used = (algorithm or ALGORITHM).encode()
    fields = (_MAGIC, _LAYOUT, _BYTE_ORDER, used, name.tenant, name.weights, name.key)
    packed = _FIELDS.pack(*fields, name.num_rows, name.row_bytes, checksum)
    return packed.ljust(BLOCK_BYTES, b"\0")


def digest_of_piece(rows: Iterable[memoryview]) -> bytes:
    """Return the digest of one piece of rows, 32 bytes."""
    hasher = new_hasher()
    for view in rows:
        hasher.update(view)
    return bytes(hasher.digest())


def checksum_of(digests: Iterable[bytes]) -> bytes:
    """Return the checksum of rows from the digests of their pieces, 32 bytes."""
    return digest_of(b"".join(digests))


def checksum_in(header: bytes, name: EntryName) -> bytes | None:
    """Return the checksum in a header; None if any other byte of it is not that of the entry's header."""
    checksum = header[_CHECKSUM]
    return checksum if header == header_of(name, checksum) else None


def has_other_algorithm(header: bytes, name: EntryName) -> bool:
    """Whether a header is that of the entry, except that its checksum has another algorithm."""
    ours = header_of(name, header[_CHECKSUM])
    start, stop = _ALGORITHM.start, _ALGORITHM.stop
    is_same = header[:start] == ours[:start] and header[stop:] == ours[stop:]
    return is_same and header[_ALGORITHM] != ours[_ALGORITHM]


def file_bytes(name: EntryName) -> int:
    """Return the size of the entry's file in bytes: the header and the rows, in whole blocks."""
    return BLOCK_BYTES + -(-name.num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def place_of(name: EntryName) -> tuple[str, str, str]:
    """Return the tenant's folder, the folder of the key's first byte, and the name of the file."""
    file = f"{name.key.hex()}.{name.weights.hex()}.{name.num_rows}x{name.row_bytes}"
    return name.tenant.hex(), name.key[:1].hex(), file


def name_at(tenant: str, file: str) -> EntryName | None:
    """Return the name of the entry at a place; None if no entry has this place."""
    match = _FILE_NAME.fullmatch(file)
    if match is None or not re.fullmatch("[0-9a-f]{64}", tenant):
        return None
    key, weights, num_rows, row_bytes = match.groups()
    name = EntryName(
        bytes.fromhex(tenant), bytes.fromhex(weights), bytes.fromhex(key), int(num_rows), int(row_bytes)
    )
    return name if place_of(name)[2] == file else None


def pack_name(name: EntryName) -> bytes:
    """Return an entry's name as bytes, first the key, for an index."""
    return _PACKED.pack(name.key, name.tenant, name.weights, name.num_rows, name.row_bytes)


def unpack_name(packed: bytes) -> EntryName:
    """Return the name that `pack_name` packed."""
    key, tenant, weights, num_rows, row_bytes = _PACKED.unpack(packed)
    return EntryName(tenant, weights, key, num_rows, row_bytes)
