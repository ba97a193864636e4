"""Moments of a trace that a user names: its end, a time, words of marker lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replay.errors import UsageError
from replay.schema import Columns

if TYPE_CHECKING:
    from replay.trace.trace import Trace

END = "end"
MAX_SECONDS = 4.6e9
"""Nanoseconds of 62 bits, 145 years."""


@dataclass(frozen=True)
class Moment:
    """A place between two events at which the state is asked for."""

    row: int  # of the batch, the first that is not replayed yet
    at: str
    vm: int  # -1 all
    ts_ns: int | None
    line: int | None


class Moments:
    """Finds the moments that were asked for in the batches of a trace.

    ``wanted`` holds ``end``, seconds of the trace's clock (behind the last event up to then), or words
    of marker lines (behind each line that holds them).  Raises ``UsageError`` for words that no
    marker line holds.
    """

    def __init__(self, trace: Trace, wanted: Sequence[str]) -> None:
        self._times = {at: round(float(at) * 1e9) for at in wanted if is_seconds(at)}
        self._texts: dict[int, list[str]] = {}
        self._last: tuple[int, int] | None = None
        self._at_end = END in wanted
        for at in dict.fromkeys(wanted):
            if at != END and at not in self._times:
                self._find_texts(at, trace.texts)

    def _find_texts(self, at: str, texts: Sequence[str]) -> None:
        words = at.strip().removeprefix("replay:").strip()
        pattern = re.compile(rf"(?<!\S){re.escape(words)}(?!\S)")
        found = [number for number, text in enumerate(texts) if words and pattern.search(text)]
        if not found:
            raise UsageError(
                f"--rmap-histogram {at}: use end, seconds, or words of a marker line of the trace"
            )
        for number in found:
            self._texts.setdefault(number, []).append(at)

    @property
    def columns(self) -> tuple[str, ...]:
        """What is needed of the events beside what a replay needs."""
        return ("text",) if self._texts else ()

    def of_batch(self, columns: Columns, stop: int) -> list[Moment]:
        """The moments in the first ``stop`` rows of the next batch, in order."""
        places = [(row, at, -1) for at, row in self._rows_of_times(columns, stop)]
        if self._texts:
            rows = np.flatnonzero(np.isin(columns.text[:stop], list(self._texts)))
            places += [
                (row + 1, at, int(columns.vm[row]))
                for row in rows.tolist()
                for at in self._texts[int(columns.text[row])]
            ]
        moments = [Moment(row, at, vm, *self._before(columns, row)) for row, at, vm in sorted(places)]
        if stop:
            self._last = int(columns.ts_ns[stop - 1]), int(columns.line[stop - 1])
        return moments

    def of_end(self) -> list[Moment]:
        """What is left at the end of the trace: times behind the last event, and the end itself."""
        last = self._last or (None, None)
        return [Moment(0, at, -1, *last) for at in (*self._times, *([END] if self._at_end else []))]

    def _rows_of_times(self, columns: Columns, stop: int) -> Iterator[tuple[str, int]]:
        for at, ts_ns in list(self._times.items()):
            later = np.flatnonzero(columns.ts_ns[:stop] > ts_ns)
            if len(later):
                del self._times[at]
                yield at, int(later[0])

    def _before(self, columns: Columns, row: int) -> tuple[int | None, int | None]:
        if row:
            return int(columns.ts_ns[row - 1]), int(columns.line[row - 1])
        return self._last or (None, None)


def is_seconds(text: str) -> bool:
    """True if ``text`` is a number of seconds, not negative, that the clock of a trace can show."""
    try:
        return 0 <= float(text) <= MAX_SECONDS
    except ValueError:
        return False
