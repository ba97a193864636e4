"""Where the bytes of a trace come from: plain files, pipes, standard input, gzip, zstd and xz.

The kind is told by the first bytes, never by the name.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from typing import BinaryIO

import zstandard

from replay.errors import TraceError

_GZIP, _ZSTD, _XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00"
_PARQUET, _ARROW, _ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
PERF_DATA = (b"PERFILE2", b"2ELIFREP")
_TRACE_DAT = b"\x17\x08\x44tracing"
_READ_SIZE = 1 << 16
"""Larger reads of a plain file go where they are wanted, without a copy."""


class _ZstdFrames(io.RawIOBase):
    """Reads concatenated zstd frames and, unlike zstandard's own reader, sees a truncated one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._in_frame = False
        self._pending = memoryview(b"")
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        while not self._pending:
            data = self._input or self._file.read(_READ_SIZE)
            self._input = b""
            if not data:
                if self._in_frame:
                    raise EOFError("the compressed file ended before the end of a frame")
                return 0
            self._pending = memoryview(self._frame.decompress(data))
            self._in_frame = True
            if self._frame.eof:
                self._input = self._frame.unused_data
                self._frame = self._decompressor.decompressobj()
                self._in_frame = False
        count = min(len(target), len(self._pending))
        target[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count


class Source:
    """An open input: decompressed bytes with ``read_into``, and how far the reading has come.

    ``format`` is "text", "trace.dat", "parquet", "arrow" or "perf.data"; the first two are read from here.
    ``size`` is that of the file in bytes, None for a pipe.  Errors are TraceError.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.format = "text"
        self.size: int | None = None
        self._compression = ""
        self._head = b""  # read already, to be read again
        try:
            self._file = _open(path)
        except OSError as error:
            raise TraceError(path, 0, error.strerror or str(error)) from error
        try:
            self._detect()  # a directory shows up when it is opened, a disk error here
        except OSError as error:
            self.close()
            raise TraceError(path, 0, error.strerror or str(error)) from error
        except TraceError:
            self.close()
            raise

    def _detect(self) -> None:
        self._buffered = buffered = io.BufferedReader(self._file, _READ_SIZE)  # type: ignore[type-var]
        self._data: io.BufferedIOBase | io.RawIOBase = buffered
        magic = buffered.peek(8)[:8]
        if isinstance(self._file, io.FileIO):
            status = os.fstat(self._file.fileno())
            self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        if magic.startswith(_PARQUET):
            self.format = "parquet"
        elif magic.startswith((_ARROW, _ARROW_STREAM)):
            self.format = "arrow"
        elif magic.startswith(PERF_DATA):
            self.format = "perf.data"
        elif magic.startswith(_GZIP):
            self._compression = "gzip"
            self._data = gzip.GzipFile(fileobj=buffered)
        elif magic.startswith(_ZSTD):
            self._compression = "zstd"
            self._data = _ZstdFrames(buffered)
        elif magic.startswith(_XZ):
            self._compression = "xz"
            self._data = lzma.LZMAFile(buffered)  # noqa: SIM115, closed by close
        if self.format == "text" and self._is_trace_dat():
            self.format = "trace.dat"

    def read_into(self, target: memoryview) -> int:
        """Fill the beginning of ``target``: number of bytes, 0 at the end.

        Raises TruncatedInput where a compressed file ends too early; all that could be had of it
        has been read by then.
        """
        if self._head:
            count = min(len(target), len(self._head))
            target[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        try:
            return self._data.readinto(target) or 0
        except EOFError as error:
            raise TruncatedInput(self.path, 0, f"truncated {self._compression} file") from error
        except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
            raise TraceError(self.path, 0, f"corrupt {self._compression} file: {error}") from error
        except OSError as error:
            raise TraceError(self.path, 0, error.strerror or str(error)) from error

    def peek(self, count: int) -> bytes:
        """The first ``count`` bytes, which ``read_into`` reads again; of a plain file what comes at once.

        Call it before anything has been read.
        """
        if self.plain_file() is not None:
            return self._buffered.peek(count)[:count]
        head = bytearray(count)
        held = 0
        with contextlib.suppress(TruncatedInput):  # told again by whoever reads on
            while held < count and (more := self.read_into(memoryview(head)[held:])):
                held += more
        self._head = bytes(head[:held])
        return self._head

    def _is_trace_dat(self) -> bool:
        """True for a trace.dat file of trace-cmd, by its first bytes behind any compression."""
        if not self._compression:
            return self._buffered.peek(len(_TRACE_DAT)).startswith(_TRACE_DAT)
        return self.peek(len(_TRACE_DAT)) == _TRACE_DAT

    def plain_file(self) -> int | None:
        """The descriptor of a plain file, to be read at any place; None for all other sources.

        Those of tracefs are others, too: they tell no size.
        """
        if not self.size or self._compression or self._file is _standard_input():
            return None
        return self._file.fileno()

    def go_to(self, place: int) -> None:
        """Go on behind the first ``place`` bytes of a plain file."""
        self._buffered.seek(place)

    def position(self) -> int:
        """Bytes of the file that have been read, before decompression."""
        if self.size is None:
            return 0
        return self._file.tell() if self._compression else self._buffered.tell()

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if self._file is not _standard_input():
            self._data.close()
            self._buffered.close()


class TruncatedInput(TraceError):
    """A compressed trace that ends before its end marker."""


def _standard_input() -> BinaryIO | None:
    return sys.stdin.buffer if sys.stdin is not None else None


def _open(path: str) -> io.RawIOBase | BinaryIO:
    if path != "-":
        return open(path, "rb", buffering=0)
    standard_input = _standard_input()
    if standard_input is None:
        raise TraceError(path, 0, "standard input is closed")
    return standard_input
