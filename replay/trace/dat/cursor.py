"""Numbers and strings of a trace.dat file, each read checked against the end of what it is read from."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import zstandard

from replay.errors import TraceError

MAX_SECTION = 1 << 28
"""Bytes a section or a chunk may have uncompressed; real ones are far below."""


class Cursor:
    """A place in ``data``; reading moves it.  Raises TraceError where the data ends too early."""

    def __init__(self, path: str, data: memoryview, at: int = 0) -> None:
        self.path = path
        self.data = data
        self.at = at

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes."""
        if not 0 <= count <= len(self.data) - self.at:
            raise TraceError(self.path, 0, "truncated trace.dat file: its headers point behind its end")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, size: int) -> int:
        """The next unsigned number of ``size`` bytes, little endian."""
        return int.from_bytes(self.take(size), "little")

    def string(self, limit: int = 4096) -> str:
        """The next string, which a NUL ends within ``limit`` bytes."""
        end = bytes(self.data[self.at : self.at + limit]).find(0)
        if end < 0:
            raise TraceError(self.path, 0, "corrupt trace.dat file: a name has no end")
        return bytes(self.take(end + 1)[:-1]).decode(errors="replace")

    def sized(self, size: int) -> str:
        """A text behind its length, a number of ``size`` bytes."""
        return bytes(self.take(self.number(size))).decode(errors="replace").partition("\0")[0]


def uncompressed(path: str, algorithm: str, packed: memoryview, size: int) -> bytes:
    """``packed`` as ``size`` bytes; ``algorithm`` is the name in the file's header, "zlib" or "zstd"."""
    if size > MAX_SECTION:
        raise TraceError(path, 0, f"corrupt trace.dat file: a compressed part claims {size} bytes")
    data = b""
    try:
        if algorithm == "zlib":
            data = zlib.decompressobj().decompress(packed, size + 1)
        elif algorithm == "zstd":
            if zstandard.frame_content_size(packed) in (-1, size):
                data = zstandard.ZstdDecompressor().decompress(packed, size)
        else:
            raise TraceError(
                path, 0, f"trace.dat file compressed with {algorithm!r}: only zlib and zstd are read"
            )
    except (zlib.error, zstandard.ZstdError) as error:
        raise TraceError(path, 0, f"corrupt trace.dat file: {error}") from error
    if len(data) != size:
        raise TraceError(path, 0, "corrupt trace.dat file: a compressed part has another size than it says")
    return data


def chunks(path: str, algorithm: str, data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """One CPU's compressed events: of each chunk its bytes in the file, and what it holds."""
    cursor, begin = Cursor(path, data), 0
    for _ in range(cursor.number(4)):
        packed, size = cursor.number(4), cursor.number(4)
        chunk = uncompressed(path, algorithm, cursor.take(packed), size)
        yield cursor.at - begin, memoryview(chunk)
        begin = cursor.at
