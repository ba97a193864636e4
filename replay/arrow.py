"""numpy arrays as Arrow arrays, in the same memory.

``pyarrow.array`` first looks for numpy.ma, pandas and dateutil: a tenth of a short run, and more than all
else for the small tables of one trace of many.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa


def arrow_array(values: np.ndarray, kind: pa.DataType, null: np.ndarray | None = None) -> pa.Array:
    """``values`` [n], C order, as an array of ``kind``, as wide as they are; null where ``null`` [n]."""
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
