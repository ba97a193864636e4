"""Arrow files, read without mapping them: one that another process cuts off would end this one by a signal.

pyarrow lays a batch out over memory that nobody touches, which tells where its columns are in the file; those
that are needed are then read, into the same memory batch after batch.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from replay.memory import new_memory

Arrays = dict[str, pa.Array]
"""Columns of one length, by their names."""

_LARGE = 1 << 16
"""Bytes of a read that may be the columns of a batch; what describes a batch takes less."""
_ROWS = 1 << 18
"""Rows that are read at once: whole bytes of bits."""
_LINE = 64
_MARK = 0xFFFFFFFF
"""What each description begins with, before its length."""
_END = struct.pack("<II", _MARK, 0)
"""What a stream ends with."""


class ArrowFile:
    """An open Arrow file.  Whatever is wrong with it is raised as pyarrow does, or as ``OSError``."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        layouts = self._layouts()
        self.schema: pa.Schema = layouts.reader.schema
        reader = self._reader(_Reads(self._file), [0] if self.schema.names else None)
        self.rows = sum(
            len(reader.get_batch(number) if (layout := layouts.of(number)) is None else layout.columns)
            for number in range(reader.num_record_batches)
        )

    def _reader(self, reads: _Reads, columns: list[int] | None = None) -> Any:
        options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
        return pa.ipc.open_file(pa.PythonFile(reads, mode="r"), options=options)

    def _layouts(self) -> _Layouts:
        reads = _Reads(self._file)
        return _Layouts(reads, self._reader(reads))

    def batches(self, names: Collection[str]) -> Iterator[Arrays]:
        """The columns ``names``, one or more, so many rows at a time as there are in a batch, or fewer."""
        places = {name: self.schema.get_field_index(name) for name in names}
        reader = self._reader(_Reads(self._file), sorted(places.values()))
        words = [name for name in names if pa.types.is_dictionary(self.schema.field(name).type)]
        dictionaries = self._dictionaries(words)
        layouts, memory = self._layouts(), _Memory()
        for number in range(reader.num_record_batches):
            layout = layouts.of(number)
            columns = {name: layout.columns.column(place) for name, place in places.items()} if layout else {}
            if layout and all(_is_inside(column, layout.body) for column in columns.values()):
                for at in range(0, len(layout.columns), _ROWS):
                    rows = min(_ROWS, len(layout.columns) - at)
                    yield _read_columns(layout.body, columns, dictionaries, at, rows, memory)
                continue
            batch = reader.get_batch(number)
            batch.validate(full=True)
            for at in range(0, len(batch), _ROWS):
                yield {name: batch.column(name)[at : at + _ROWS] for name in names}

    def _dictionaries(self, names: list[str]) -> Arrays:
        """The dictionaries of columns, which all batches share."""
        if not names:
            return {}
        reader = self._reader(_Reads(self._file), sorted(map(self.schema.get_field_index, names)))
        if reader.num_record_batches == 0:
            return {}
        batch = reader.get_batch(0)
        dictionaries = {name: batch.column(name).dictionary for name in names}
        for dictionary in dictionaries.values():
            dictionary.validate(full=True)
        return dictionaries


class ArrowStream:
    """An open Arrow stream, which has no table of its batches: it is read from its beginning on each time."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        reader = self._reader()
        self.schema: pa.Schema = reader.schema
        self.rows = sum(map(len, reader))
        if os.pread(self._file, len(_END), os.fstat(self._file).st_size - len(_END)) != _END:
            raise OSError("the stream has no end: it has been cut off")

    def _reader(self) -> Any:
        return pa.ipc.open_stream(pa.PythonFile(_Reads(self._file), mode="r"))

    def batches(self, names: Collection[str]) -> Iterator[Arrays]:
        """As ``ArrowFile.batches``."""
        for batch in self._reader():
            batch.validate(full=True)
            for at in range(0, len(batch), _ROWS):
                yield {name: batch.column(name)[at : at + _ROWS] for name in names}


def open_arrow(path: str) -> ArrowFile | ArrowStream:
    """The Arrow file or stream ``path``.  Whatever is wrong is raised as pyarrow does, or as ``OSError``."""
    with open(path, "rb") as file:
        is_stream = file.read(4) == struct.pack("<I", _MARK)
    return ArrowStream(path) if is_stream else ArrowFile(path)


class _Body:
    """Where the columns of a batch are: from ``place`` on in ``file``, as in memory that is never touched."""

    def __init__(self, file: int, place: int, memory: np.ndarray) -> None:
        self.file = file
        self.place = place
        self.memory = memory

    def offset(self, buffer: pa.Buffer, size: int) -> int | None:
        """Where ``buffer``, ``size`` bytes, begins in the memory, None if it does not lie there."""
        at = int(buffer.address) - int(self.memory.ctypes.data)
        return at if 0 <= at <= len(self.memory) - size and buffer.size >= size else None


class _Layout(NamedTuple):
    body: _Body
    columns: pa.RecordBatch


class _Layouts:
    """Batches of ``reader``, which reads by ``reads``, laid out."""

    def __init__(self, reads: _Reads, reader: Any) -> None:
        self._reads = reads
        self.reader = reader
        self._is_possible = True

    def of(self, number: int) -> _Layout | None:
        """None where a batch is small, or cannot be used as it lies in the file: compressed, or damaged."""
        if not self._is_possible:
            return None
        self._reads.is_layout, self._reads.body = True, None
        try:
            columns = self.reader.get_batch(number)
            columns.validate()
        except (pa.ArrowException, OSError):
            self._is_possible = False
            return None
        return None if self._reads.body is None else _Layout(self._reads.body, columns)


class _Reads:
    """What ``pa.PythonFile`` wants of a file: a place, and reads from there."""

    closed = False

    def __init__(self, file: int) -> None:
        self._file = file
        self._at = 0
        self._untouched = new_memory(1)
        self.is_layout = False
        """Large reads give memory that is not read into: ``body`` is the last of them."""
        self.body: _Body | None = None

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._file).st_size}[whence]
        self._at = begin + place
        return self._at

    def tell(self) -> int:
        return self._at

    def read_buffer(self, size: int) -> pa.Buffer:
        """Up to ``size`` bytes."""
        size = max(0, min(size, os.fstat(self._file).st_size - self._at))  # a damaged file asks for anything
        if self.is_layout and size >= _LARGE:
            if len(self._untouched) < size:
                self._untouched = new_memory(size)
            data, count = self._untouched[:size], size
            self.body = _Body(self._file, self._at, data)
            _read(self._file, data[: _description(self._file, self._at, size)], self._at)
        else:
            data = np.empty(size, np.uint8)
            count = _read(self._file, data, self._at)
        self._at += count
        return pa.py_buffer(data[:count])

    def read(self, size: int) -> bytes:
        return self.read_buffer(size).to_pybytes()

    def close(self) -> None:
        """The descriptor is the file's."""


def _description(file: int, place: int, size: int) -> int:
    """Bytes that describe a batch before its columns, where both are read at once."""
    mark, length = struct.unpack("<II", os.pread(file, 8, place).ljust(8))
    return min(size, 8 + length) if mark == _MARK else 0


class _Memory:
    """Blocks of memory, each used again when the last array in it is gone."""

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []

    def take(self, size: int) -> np.ndarray:
        """``size`` bytes of any content: used for as long as there is this array, or a buffer of it."""
        unused = [block for block, user in self._blocks if user() is None and len(block) >= size]
        block = unused[0] if unused else new_memory(size, reserve=True)
        used = [(other, user) for other, user in self._blocks if user() is not None]
        taken = block[:size]
        self._blocks = [*used, (block, weakref.ref(taken))]
        return taken


def _is_inside(array: pa.Array, body: _Body) -> bool:
    """The values of ``array``, numbers or their dictionary's numbers, are in ``body`` as they are."""
    width = _width(array.type)
    validity, data = array.buffers()[:2] if width else (None, None)
    if data is None or body.offset(data, width * len(array)) is None:
        return False
    return validity is None or body.offset(validity, -(-len(array) // 8)) is not None


def _width(kind: pa.DataType) -> int:
    """Bytes of a number; 0 of other types."""
    if pa.types.is_dictionary(kind):
        kind = kind.index_type
    return kind.bit_width // 8 if pa.types.is_integer(kind) else 0


def _read_columns(
    body: _Body, columns: Arrays, dictionaries: Arrays, at: int, rows: int, memory: _Memory
) -> Arrays:
    """The ``rows`` rows from ``at`` on of ``columns``, which lie in ``body``."""
    bits = -(-rows // 8)
    widths = {name: _width(column.type) for name, column in columns.items()}
    room = sum(-(-width * rows // _LINE) * _LINE for width in widths.values())
    block = memory.take(room + len(columns) * (-(-bits // _LINE) * _LINE))
    shared, free = pa.py_buffer(block), 0

    def read(buffer: pa.Buffer, first: int, size: int) -> pa.Buffer:
        nonlocal free
        begin, free = free, free + -(-size // _LINE) * _LINE
        place = body.place + (body.offset(buffer, 0) or 0) + first
        if _read(body.file, block[begin : begin + size], place) < size:
            raise OSError("the file ends before its columns do")
        return shared.slice(begin, size)

    arrays = {}
    for name, column in columns.items():
        validity, data = column.buffers()[:2]
        valid = None if validity is None or not column.null_count else read(validity, at // 8, bits)
        values = read(data, widths[name] * at, widths[name] * rows)
        kind = column.type.index_type if name in dictionaries else column.type
        array = pa.Array.from_buffers(kind, rows, [valid, values])
        if name in dictionaries:
            array = pa.DictionaryArray.from_arrays(array, dictionaries[name], safe=False)
        arrays[name] = array
    return arrays


def _read(file: int, target: np.ndarray, place: int) -> int:
    """Fill ``target`` from ``place`` on: the number of bytes that there were."""
    count = 0
    while count < len(target) and (more := os.preadv(file, [target[count:].data], place + count)):
        count += more
    return count
