"""Recognise compressed streams by their first bytes and unpack them piece by piece.

Guarantees: memory stays bounded whatever a stream expands to (zstd: 32 MB a piece at worst, the
others 1 MiB, plus the format's own window); what is unpacked before a stream breaks is given out.
It knows gzip, zlib with a 32 KiB window, bz2, xz, zstd and the deflated members of ZIP files. It
does not know formats without a signature (raw deflate, lzma "alone", snappy, lz4 blocks, brotli).
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Iterator
from typing import Literal, Protocol

import zstandard

Packing = Literal["gzip", "zlib", "bz2", "xz", "zstd", "zip"]

SIGNATURES: dict[bytes, Packing] = {
    b"\x1f\x8b\x08": "gzip",
    b"\x78\x01": "zlib",
    b"\x78\x5e": "zlib",
    b"\x78\x9c": "zlib",
    b"\x78\xda": "zlib",
    **{b"BZh%d1AY&SY" % level: "bz2" for level in range(1, 10)},
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
LONGEST = max(map(len, SIGNATURES))

_PIECE = 1 << 20
_ZSTD_SLICE = 1 << 10  # 4 bytes can stand for a block of 128 KiB
_MEMORY = 1 << 28


class UnreadableError(Exception):
    """The stream is what its signature says, but cannot be unpacked here."""


class BrokenError(Exception):
    """The bytes are not (or no longer) such a stream."""


class Unpacker(Protocol):
    """Takes a stream in parts and gives out what it holds.

    `unpack` raises `BrokenError` or `UnreadableError`; `done` is true once the stream has ended.
    """

    done: bool

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """Give out what `data`, the next bytes of the stream, hold."""
        ...


class _Deflate:
    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)
        self.done = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while data and not self.done:
            try:
                out = self._inner.decompress(data, _PIECE)
            except zlib.error as error:
                raise BrokenError from error
            self.done = self._inner.eof
            data = self._inner.unconsumed_tail
            if out:
                yield out


class _Whole:
    """bz2 and xz, whose decompressors share one interface."""

    def __init__(self, inner: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._inner = inner
        self.done = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while not self.done:
            try:
                out = self._inner.decompress(data, _PIECE)
            except lzma.LZMAError as error:
                if "emory" in str(error):
                    raise UnreadableError("an xz stream that needs more than 256 MiB") from error
                raise BrokenError from error
            except (OSError, EOFError, ValueError) as error:
                raise BrokenError from error
            self.done = self._inner.eof
            data = b""
            if out:
                yield out
            if self._inner.needs_input:
                return


class _Zstd:
    def __init__(self, first: bool) -> None:
        self._first = first
        self._inner = zstandard.ZstdDecompressor(max_window_size=_MEMORY).decompressobj()
        self.done = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_SLICE):
            try:
                out = self._inner.decompress(data[start : start + _ZSTD_SLICE])
            except zstandard.ZstdError as error:
                # Four bytes come by chance once in 4 GB, and most headers then ask for the
                # impossible: believe that only where a stream is expected to start.
                reason = str(error) if self._first else ""
                if "memory" in reason:
                    raise UnreadableError("a zstd stream that needs more than 256 MiB") from error
                if "ictionary" in reason:
                    raise UnreadableError("a zstd stream with a separate dictionary") from error
                raise BrokenError from error
            if out:
                yield out
            if self._inner.eof:
                self.done = True
                return


class _Zip:
    """One member, from its local header on.

    Stored members lie in the clear; those packed as bz2, xz or zstd have signatures of their own.
    """

    _HEADER = struct.Struct("<4sHHHHHIIIHH")
    _CARRIED = (0, 12, 93, 95)
    _METHODS = (*range(21), *range(93, 100))
    _NEWEST, _LONGEST_NAME = 63, 4096  # version needed to extract; bytes

    def __init__(self) -> None:
        self._head = b""
        self._inner: _Deflate | None = None
        self.done = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        if self._inner is None:
            self._head += data
            if len(self._head) < self._HEADER.size:
                return
            _, version, flags, method, *_, name, extra = self._HEADER.unpack_from(self._head)
            known = method in self._METHODS and version & 0xFF <= self._NEWEST and version < 1 << 13
            if not known or not 0 < name <= self._LONGEST_NAME:
                raise BrokenError
            body = self._HEADER.size + name + extra
            if flags & 1:
                raise UnreadableError("an encrypted ZIP member")
            if method in self._CARRIED:
                self.done = True
                return
            if method != 8:
                raise UnreadableError(f"a ZIP member packed by method {method}")
            if len(self._head) < body:
                return
            self._inner = _Deflate(-zlib.MAX_WBITS)
            data, self._head = self._head[body:], b""
        yield from self._inner.unpack(data)
        self.done = self._inner.done


def unpacker(packing: Packing, first: bool) -> Unpacker:
    """A new unpacker for a stream with that packing's signature.

    `first` says whether it is the first thing in its file or in the stream around it; only there is
    a zstd frame that needs a dictionary or too much memory told from a signature by chance.
    """
    if packing == "gzip":
        return _Deflate(16 + zlib.MAX_WBITS)
    if packing == "zlib":
        return _Deflate(zlib.MAX_WBITS)
    if packing == "bz2":
        return _Whole(bz2.BZ2Decompressor())
    if packing == "xz":
        return _Whole(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))
    if packing == "zstd":
        return _Zstd(first)
    return _Zip()
