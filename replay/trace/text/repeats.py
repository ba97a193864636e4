"""Lines that a trace has twice: a quoted copy below the original, a file that was put together wrongly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from replay.schema import Columns

MAX_ROWS = 1 << 22
"""So many rows at the beginning are looked at; who pastes, pastes less."""

_IDENTITY = tuple(name for name in Columns._fields if name not in ("line", "vm", "comm", "tgid"))
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


class Repeated(NamedTuple):
    """Rows that were there before, and the line of the first of them."""

    rows: int
    first_line: int


def repeated_lines(batches: Iterable[Columns]) -> Repeated | None:
    """The rows that are the same as one before the time last went back; None if there is none.

    What comes twice without that may well have happened twice in a microsecond.
    """
    hashes, lines, parts = _rows(batches)
    order = np.argsort(hashes, kind="stable")
    is_first = np.append(True, hashes[order[1:]] != hashes[order[:-1]])
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    again = order[parts[order] > parts[first]]
    return Repeated(len(again), int(lines[again].min())) if len(again) else None


def _rows(batches: Iterable[Columns]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row its hash, its line, and how often the time went back before it."""
    hashes, lines, times, count = [], [], [], 0
    for batch in batches:
        hashes.append(_hashes(batch))
        lines.append(batch.line.copy())
        times.append(batch.ts_ns.copy())
        count += len(batch.line)
        if count >= MAX_ROWS:
            break
    time = np.concatenate(times)
    is_back = np.diff(time, prepend=time[:1]) < 0
    return np.concatenate(hashes), np.concatenate(lines), np.cumsum(is_back, dtype=np.int64)


def _hashes(batch: Columns) -> np.ndarray:
    hashes = np.zeros(len(batch.line), np.uint64)
    for name in _IDENTITY:
        hashes ^= getattr(batch, name).astype(np.int64).view(np.uint64)
        hashes *= _MIX
        hashes ^= hashes >> _SHIFT
    return hashes
