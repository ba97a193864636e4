"""numpy arrays as Arrow arrays, and back, in the same memory.

``pyarrow.array`` first looks for numpy.ma, pandas and dateutil: a tenth of a short run, and more than all
else for the small tables of one trace of many.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import pyarrow as pa

from replay.schema import COLUMN_TYPES, Columns

Places = Mapping[str, Mapping[str, int]]
"""Of each column of words the number of each word."""
ReadColumns = Callable[[Places, Collection[str]], Iterator[Columns]]
"""Reads the batches of a table; columns that are not named need not be read."""


def arrow_array(values: np.ndarray, kind: pa.DataType, null: np.ndarray | None = None) -> pa.Array:
    """``values`` [n], C order, as an array of ``kind``, which has their width; null where ``null`` [n]."""
    data = np.packbits(values, bitorder="little") if pa.types.is_boolean(kind) else values
    validity = None
    if null is not None and null.any():
        validity = pa.py_buffer(np.packbits(~null, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(data)])


def words_array(codes: np.ndarray, words: tuple[str, ...]) -> pa.Array:
    """A dictionary array: ``words`` by their ``codes`` [n], null where a code is negative."""
    indices = arrow_array(codes.astype(np.int8), pa.int8(), codes < 0)
    return pa.DictionaryArray.from_arrays(indices, _dictionary(words), safe=False)


@cache
def _dictionary(words: tuple[str, ...]) -> pa.Array:
    return pa.array(words, pa.string())


def record_batches(
    batches: Iterable[Columns], words: Mapping[str, Sequence[str]], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """``batches`` with ``schema``; ``words``: what the numbers of a column mean, null if negative."""
    dictionaries = {name: pa.array(known, pa.string()) for name, known in words.items()}
    for batch in batches:
        arrays = []
        for name, column in zip(COLUMN_TYPES, batch, strict=True):
            if name in dictionaries:
                indices = arrow_array(column, pa.int32(), column < 0)
                arrays.append(pa.DictionaryArray.from_arrays(indices, dictionaries[name]))
            else:
                arrays.append(arrow_array(column, schema.field(name).type))
        yield pa.record_batch(arrays, schema=schema)


def numpy_array(array: pa.Array, kind: str) -> np.ndarray:
    """The memory of ``array`` (of its indices, if it has a dictionary), which nobody else has, writable.

    Arrow hands out arrays that cannot be written to, which are another type to jitted code.
    """
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array), kind)
    memory = (ctypes.c_uint8 * buffer.size).from_address(buffer.address)
    memory.owner = buffer  # which lives as long as the array
    return np.frombuffer(memory, kind, len(array), array.offset * np.dtype(kind).itemsize)


def numbered_array(array: pa.DictionaryArray, numbers: Mapping[str, int]) -> np.ndarray:
    """The words of ``array``, whose indices are int32, by their ``numbers``, -1 where null.

    Raises KeyError for any other word, ValueError for an index that the dictionary does not have.
    """
    if array.null_count == len(array):
        return np.full(len(array), -1, np.int32)
    own = [numbers[word] for word in array.dictionary.to_pylist()]
    indices: np.ndarray = numpy_array(array, "int32")
    if array.null_count:
        indices = np.where(_valid(array), indices, np.int32(-1))
    if len(indices) and (indices.min() < (-1 if array.null_count else 0) or indices.max() >= len(own)):
        raise ValueError("a word that its dictionary does not have")
    if own == list(range(len(own))):  # most often, and then there is nothing to look up
        return indices
    return np.take(np.array([*own, -1], np.int32), indices)


def _valid(array: pa.Array) -> np.ndarray:
    """Which values of ``array``, some of them null, are not; pyarrow.compute takes long to import."""
    validity = array.buffers()[0]
    if validity is None:
        raise ValueError("nulls without a validity bitmap")
    bits = np.frombuffer(validity, np.uint8)
    places = slice(array.offset, array.offset + len(array))
    return np.unpackbits(bits, bitorder="little")[places].view(np.bool_)
