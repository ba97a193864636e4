"""What the parsers of all forms have in common: tasks, batches, and what a trace is found to be."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator

import numpy as np

from replay.errors import MalformedLine, TraceError
from replay.schema import Columns
from replay.trace.formats import AUTO, BANNER, BINARY_FORMATS
from replay.trace.scan.header import NOBODY
from replay.trace.scan.lex import decoded
from replay.trace.scan.role_words import RoleWords
from replay.trace.scan.rows import columns_of
from replay.trace.scan.state import new_scanner
from replay.trace.source import Source, TruncatedInput
from replay.trace.table.batch_store import BatchStore
from replay.trace.text.encodings import DecodedSource
from replay.trace.text.perf_data import PerfScript
from replay.trace.text.plugin_pages import INCOMPLETE_NAMES, WITHOUT
from replay.trace.text.repeats import repeated_lines
from replay.trace.trace import Trace
from replay.trace.vms import SlotOwners, VmCreated, find_vms, vm_created

BATCH_ROWS, FIRST_ROWS = 137_000, 39_000
"""Of a batch, and of the first: they fill seven large pages, and two."""
WITHOUT_PROCESS = "events of several VMs without process"
LEAST_LINE = 32
"""Bytes of any line that may be an event."""

ByteSource = Source | PerfScript | DecodedSource
Progress = Callable[[int, int | None], None]
"""Called with the bytes read so far and the size of the file (None for a pipe)."""

_KERNEL = re.compile(BANNER)


class Parser(ABC):
    """Feeds a source to jitted code, adds what is new to its tables, collects its batches."""

    def __init__(
        self,
        source: ByteSource,
        file_format: str | None,
        strict: bool,
        tolerate_truncation: bool,
        progress: Progress | None,
        batch_rows: int,
        store: BatchStore,
    ) -> None:
        self._source = source
        self._file_format = None if file_format in BINARY_FORMATS or file_format == AUTO else file_format
        self._strict = strict
        self._tolerate_truncation = tolerate_truncation
        self._progress = progress
        self._batch_rows = batch_rows
        self._store = store
        self._trace = Trace(source.path, source.format)
        self._begin()

    def _begin(self) -> None:
        """Forget what has been read so far; only while there is no batch."""
        self._created: list[VmCreated] = []
        self._tasks = [NOBODY]
        self._task_numbers: dict[bytes, int] = {}  # by header
        self._comms: dict[str, int] = {}
        self._role_words = RoleWords()
        self._slot_owners = SlotOwners()
        self._trace.malformed.clear()
        self._trace.lost_events = 0
        self._scanner = new_scanner()
        self._rows = self._store.memory.rows(min(self._batch_rows, self._rows_to_expect()))

    def _rows_to_expect(self) -> int:
        """About as many rows as a small file has, so that few pages of memory are cleared for it."""
        size = self._source.size
        return FIRST_ROWS if size is None else min(FIRST_ROWS, max(1024, size // LEAST_LINE))

    @abstractmethod
    def parse(self, chunk_bytes: int, threads: int) -> Trace:
        """Read the source to its end, in chunks of ``chunk_bytes``, by ``threads`` where it can be."""

    def _tell(self, position: int) -> None:
        if self._progress:
            self._progress(position, self._source.size)

    def _read(self, target: np.ndarray) -> int:
        try:
            return self._source.read_into(target.data)
        except TruncatedInput as error:
            if not self._tolerate_truncation:
                raise
            self._trace.truncated = error.message
            return 0

    def _comm_number(self, comm: str) -> int:
        return self._comms.setdefault(comm, len(self._comms))

    def _add_malformed(self, lines: list[tuple[int, str]]) -> None:
        for line, text in lines:
            if self._strict:
                raise MalformedLine(self._source.path, line, f"malformed event: {text}")
            self._trace.malformed.append((line, text))

    def _end_batch(self) -> None:
        """Put the rows so far into the store and begin a new batch."""
        rows, count = self._rows, int(self._scanner.state.rows)
        if count:
            self._scanner.state.time_before = rows.ts_ns[count - 1]
            self._add_batch(columns_of(rows, count))
            self._rows, self._scanner.state.rows = self._store.memory.rows(self._batch_rows), 0

    def _add_batch(self, columns: Columns) -> None:
        self._created += vm_created(columns)
        self._role_words.note(columns)
        self._slot_owners.note(columns)
        self._trace.events += len(columns.kind)
        self._store.append(columns)

    def _add_notes(self) -> None:
        """Say what is strange about the order of the lines."""
        state = self._scanner.state
        if state.times_back:
            notes = self._trace.notes
            notes["time_back"] = {
                "count": int(state.times_back),
                "first_line": int(state.first_back),
            }
            if repeated := repeated_lines(self._store):
                notes["repeated_lines"] = {"count": repeated.rows, "first_line": repeated.first_line}

    def _finish(self) -> Trace:
        if self._trace.bytes == 0:
            raise TraceError(self._trace.path, 0, "empty file")
        self._end_batch()
        trace, scanner, store = self._trace, self._scanner, self._store
        state = scanner.state
        trace.lines = int(state.lines)
        trace.kvmmmu_events = int(state.kvmmmu)
        trace.ignored_lines = int(state.ignored)
        trace.malformed_lines = int(state.malformed)
        trace.lost_events += int(state.lost)
        if state.last_time:
            trace.first_ts_ns, trace.last_ts_ns = int(state.first_time), int(state.last_time)
        named = zip(decoded(scanner.names), scanner.kinds[:, 1].tolist(), strict=False)
        trace.ignored_events = {name: count for name, count in named if count}
        for name in [name for name in INCOMPLETE_NAMES if name in trace.ignored_events]:
            trace.losses[name.replace(WITHOUT, " without ")] = trace.ignored_events.pop(name)
        trace.comms, trace.texts = list(self._comms), decoded(scanner.texts)
        told = (kernel[1] + (kernel[2] or "") for text in trace.texts if (kernel := _KERNEL.search(text)))
        trace.kernel = trace.kernel or next(told, None)
        first_lines = scanner.tasks[: len(self._tasks)].first_line.tolist()
        self._add_notes()
        try:
            vms = find_vms(self._tasks, first_lines, self._created, trace.texts)
        except ValueError as error:
            raise TraceError(trace.path, 0, str(error)) from error
        trace.vms = vms.names
        if self._slot_owners.several_vms and len(trace.vms) == 1:
            trace.losses[WITHOUT_PROCESS] = trace.events
        words = self._role_words
        words.settle(trace.kernel)
        trace.role_words = words.whole

        def batches(_: Collection[str]) -> Iterator[Columns]:
            words.begin()
            for batch in store:
                vms.assign(batch)
                if words.seen:
                    words.convert(batch)
                yield batch

        trace._batches = batches
        return trace
