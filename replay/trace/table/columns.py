"""What the readers of tables have in common: constant columns, and batches that are read ahead."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from replay.schema import COLUMN_TYPES, Columns


class Filled:
    """What constant columns share: nobody writes to the columns of a table."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, int], np.ndarray] = {}

    def column(self, name: str, value: int, rows: int) -> np.ndarray:
        """The column ``name`` with ``value`` in each of its ``rows``."""
        kind = COLUMN_TYPES[name]
        array = self._arrays.get((kind, value))
        if array is None or len(array) < rows:
            # zeros take no time until they are read
            array = np.full(rows, value, kind) if value else np.zeros(rows, kind)
            self._arrays[kind, value] = array
        return array[:rows]


def ahead(batches: Iterator[Columns]) -> Iterator[Columns]:
    """``batches``; another thread reads the next one while one is in use."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = reader.submit(next, batches, None)
            yield batch
