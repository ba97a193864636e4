"""Bytes, numbers and strings of a trace.dat file, each read checked against the end of what has them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import numpy as np
import zstandard

from replay.errors import TraceError

MAX_SECTION = 1 << 28
"""Bytes a section or a chunk may have uncompressed; real ones are far below."""


_BLOCK_BYTES = 1 << 16


class FileBytes:
    """The bytes ``[begin, end)`` of an open file, read where they are asked for.

    Read and not mapped: a file that is cut off meanwhile is an error then, and not the end of the program.
    """

    def __init__(self, path: str, file: int, begin: int, end: int) -> None:
        self._path = path
        self._file = file
        self._begin = begin
        self._end = max(begin, end)
        self._block_at = 0
        self._block = memoryview(b"")  # what was read last: numbers and names stand close together

    @classmethod
    def whole(cls, path: str, file: int) -> FileBytes:
        """All of the file with descriptor ``file``."""
        return cls(path, file, 0, os.fstat(file).st_size)

    def __len__(self) -> int:
        return self._end - self._begin

    def part(self, begin: int, end: int) -> FileBytes:
        """The bytes ``[begin, end)`` of these, less where these end before."""
        return FileBytes(self._path, self._file, self._begin + begin, min(self._begin + end, self._end))

    def read_into(self, target: np.ndarray, at: int) -> int:
        """Fill the beginning of ``target`` uint8 with what is at ``at``: bytes read, fewer at the end."""
        wanted = min(len(target), len(self) - at)
        done = 0
        try:
            while done < wanted:
                count = os.preadv(self._file, [target[done:wanted].data], self._begin + at + done)
                if count == 0:
                    raise TraceError(self._path, 0, "truncated trace.dat file: cut off while it was read")
                done += count
        except OSError as error:
            raise TraceError(self._path, 0, error.strerror or str(error)) from error
        return done

    def __getitem__(self, place: slice) -> memoryview:
        begin, end, _ = place.indices(len(self))
        size, at = max(0, end - begin), begin - self._block_at
        if at < 0 or at + size > len(self._block):
            data = np.empty(max(size, _BLOCK_BYTES), np.uint8)
            count = self.read_into(data, begin)
            self._block_at, self._block, at = begin, data[:count].data, 0
        return self._block[at : at + size]


class Cursor:
    """A place in ``data``; reading moves it.  Raises TraceError where the data ends too early."""

    def __init__(self, path: str, data: memoryview | FileBytes, at: int = 0) -> None:
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


def chunks(path: str, algorithm: str, data: FileBytes) -> Iterator[tuple[int, memoryview]]:
    """One CPU's compressed events: of each chunk its bytes in the file, and what it holds."""
    cursor, begin = Cursor(path, data), 0
    for _ in range(cursor.number(4)):
        packed, size = cursor.number(4), cursor.number(4)
        chunk = uncompressed(path, algorithm, cursor.take(packed), size)
        yield cursor.at - begin, memoryview(chunk)
        begin = cursor.at
