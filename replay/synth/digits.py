"""Lines of one pattern, written by the thousand: text as a matrix of bytes, a row for each repetition."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

SECOND_US = 1000000
_TWO_HEX = np.frombuffer("".join(f"{n:02x}" for n in range(256)).encode(), np.uint8).reshape(256, 2)
_THREE_DIGITS = np.frombuffer("".join(f"{n:03d}" for n in range(1000)).encode(), np.uint8).reshape(1000, 3)
_HEX_POWERS = np.array([16**n for n in range(1, 16)], np.uint64)


class Number(NamedTuple):
    """A number that goes on in steps; ``width`` hex digits, as many as it takes if 0."""

    last: int
    step: int
    width: int


class Time:
    """Stands for the time of a line, ``seconds.microseconds``."""


Piece = str | Number | Time
"""A part of a pattern's text."""


def render(pieces: list[Piece], count: int, start_us: int, period_us: int) -> list[bytes]:
    """``pieces`` ``count`` times, ``period_us`` apart, in parts.

    The first line is at ``start_us``, each next one of a repetition a microsecond later.
    """
    rows = np.arange(count, dtype=np.uint64)[:, None]
    numbers = [piece for piece in pieces if isinstance(piece, Number)]
    steps = np.array([number.step % (1 << 64) for number in numbers], np.uint64)
    values = np.array([number.last for number in numbers], np.uint64) + (rows + np.uint64(1)) * steps
    widths = np.searchsorted(_HEX_POWERS, values, "right") + 1
    widths = np.maximum(widths, [number.width for number in numbers])
    hexes = _TWO_HEX[values.astype(">u8").view(np.uint8)].reshape(count, len(numbers), 16)
    lines = np.arange(sum(isinstance(piece, Time) for piece in pieces), dtype=np.uint64)
    times = np.uint64(start_us) + rows * np.uint64(period_us) + lines
    seconds = times // np.uint64(SECOND_US)
    microseconds = times - seconds * np.uint64(SECOND_US)
    thousands = microseconds // np.uint64(1000)
    digits = np.stack([thousands, microseconds - thousands * np.uint64(1000)], axis=2)
    decimals = _THREE_DIGITS[digits].reshape(count, len(lines), 6)
    alike = (widths[1:] == widths[:-1]).all(axis=1) & (seconds[1:] == seconds[:-1]).all(axis=1)
    begins = [0, *(np.flatnonzero(~alike) + 1).tolist(), count]
    blocks = []
    for begin, end in pairwise(begins):
        columns: list[str | np.ndarray] = []
        number = line = 0
        for piece in pieces:
            if isinstance(piece, str):
                columns.append(piece)
            elif isinstance(piece, Number):
                columns.append(hexes[begin:end, number, 16 - widths[begin, number] :])
                number += 1
            else:
                columns += [f"{seconds[begin, line]:5d}.", decimals[begin:end, line]]
                line += 1
        blocks.append(_block(columns, end - begin))
    return blocks


def _block(columns: list[str | np.ndarray], rows: int) -> bytes:
    """Text and digits uint8[rows, width] side by side."""
    row = b"".join(
        column.encode() if isinstance(column, str) else bytes(column.shape[1]) for column in columns
    )
    text = np.empty((rows, len(row)), np.uint8)
    text[:] = np.frombuffer(row, np.uint8)
    at = 0
    for column in columns:
        if isinstance(column, str):
            at += len(column.encode())
        else:
            text[:, at : at + column.shape[1]] = column
            at += column.shape[1]
    return text.tobytes()
