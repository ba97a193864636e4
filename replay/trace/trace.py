"""``Trace``: what a trace holds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from replay.schema import COLUMN_TYPES, Columns, event_schema

if TYPE_CHECKING:
    import pyarrow as pa


NOTES = {
    "time_back": "steps back in time: {count:,} (first at line {first_line:,})",
    "repeated_lines": "repeated lines: {count:,} (first at line {first_line:,})",
}
"""What may be strange about a trace, and how to say it."""


@dataclass
class Trace:
    """One trace: what it holds, and its events by ``batches`` or ``table``."""

    path: str  # as given, "-" for standard input
    format: str  # a key of formats.TEXT_FORMATS, "trace.dat", "perf.data", "arrow" or "parquet"
    bytes: int = 0  # of the text, decompressed
    lines: int = 0  # = events + ignored_lines + malformed_lines
    events: int = 0  # rows of the table
    kvmmmu_events: int = 0
    ignored_lines: int = 0  # blank, comment and stack-trace lines, events of other kinds
    malformed_lines: int = 0  # lines of a known event that cannot be parsed
    malformed: list[tuple[int, str]] = field(default_factory=list)  # the first 100: line number, text
    ignored_events: dict[str, int] = field(default_factory=dict)  # name of another event: lines
    lost_events: int = 0
    losses: dict[str, int] = field(default_factory=dict)  # what the form of text lacks: events without it
    notes: dict[str, dict[str, int]] = field(default_factory=dict)  # NOTES: "count", "first_line"
    first_ts_ns: int | None = None
    last_ts_ns: int | None = None
    vms: list[str] = field(default_factory=list)  # the column vm indexes this
    comms: list[str] = field(default_factory=list)  # dictionary of the column comm
    texts: list[str] = field(default_factory=list)  # dictionary of the column text
    kernel: str | None = None  # kernel version, if the trace tells it
    role_words: bool = False  # roles have all bits of the kernel's, guest_mode too
    truncated: str | None = None  # why the input ended early, where that is tolerated
    _batches: Callable[[Collection[str]], Iterator[Columns]] = field(default=lambda _: iter(()), repr=False)

    def batches(self, needed: Collection[str] = COLUMN_TYPES) -> Iterator[Columns]:
        """The events in file order, as arrays of at most ``BATCH_ROWS`` rows; may be asked for again.

        What columns hold that are not ``needed`` is not defined: they may not even have been read.
        """
        return self._batches(needed)

    def kind_counts(self) -> np.ndarray:
        """Events by kind, those of no VM included: int64[256]."""
        counts = np.zeros(256, np.int64)
        for batch in self.batches(("kind",)):
            counts += np.bincount(batch.kind, minlength=256)
        return counts

    def table(self) -> pa.Table:
        """All events as one Arrow table of ``replay.schema.event_schema()``."""
        import pyarrow as pa

        schema = event_schema()
        return pa.Table.from_batches(self.record_batches(schema), schema)

    def record_batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The events by ``batches``; ``schema`` is that of the table, with or without metadata."""
        from replay.arrow import record_batches

        return record_batches(self.batches(), {"comm": self.comms, "text": self.texts}, schema)
