"""Markers that the VMM itself writes, moved to where the ioctl began that each tells of.

QEMU writes them when the ioctl is over, so that the lines of a split stand before the marker which says
what was split; others may write them first.  Which, is told by the lines around and by their gfns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from replay.jit import by_reference, clear, kernel
from replay.schema import LAST_KVMMMU, Columns, Flag, Kind, Role

if TYPE_CHECKING:
    from replay.trace.trace import Trace

MARKER_COLUMNS = ("kind", "vm", "pid", "role", "level", "flags", "line", "gfn", "end", "num", "code", "addr")
"""What is read of an event to place markers."""
_TASKS = 1024
PAGE_BYTES = 4096
RUN = np.dtype(
    [
        ("pid", np.int64),  # + 1, 0 none
        ("first", np.int64),  # its first line
        ("gfn", np.int64),  # of its first split, and the level
        ("level", np.int64),
        ("before", np.int64),  # line of the VMM's marker right before it, 0 none
        ("after", np.int64),
        ("splits", np.int64),
    ]
)
"""A run of lines of splits by one task."""


class Search(NamedTuple):
    """Runs: those that tasks are in, by pid, and those that have ended, in order."""

    tasks: np.ndarray  # [_TASKS] RUN
    runs: np.ndarray  # [as many as can end] RUN


@kernel
def find_runs(c: Columns, search: Search) -> int:
    """Append to ``search.runs`` those that end in ``c``; how many."""
    s = by_reference(search)
    found = 0
    for i in range(len(c.kind)):
        kind = c.kind[i]
        run = s.tasks[c.pid[i] & (_TASKS - 1)]
        if run.pid != c.pid[i] + 1:
            clear(run)
            run.pid = c.pid[i] + 1
        starts = kind == Kind.SPLIT_HUGE_PAGE or kind == Kind.TDP_MMU_SPTE_CHANGED
        starts |= kind == Kind.GET_PAGE and np.int64(c.role[i]) & Role.DIRECT != 0
        if starts or kind == Kind.PREPARE_ZAP_PAGE or kind == Kind.SYNC_PAGE:
            if starts and run.first == 0:
                run.first = c.line[i]
            if kind == Kind.SPLIT_HUGE_PAGE and run.splits == 0:
                run.gfn, run.level = np.int64(c.gfn[i]), np.int64(c.level[i])
            run.splits += kind == Kind.SPLIT_HUGE_PAGE
            continue
        marker = kind == Kind.MARK_MEMSLOT or kind == Kind.MARK_CLEAR_DIRTY_LOG
        marker &= c.flags[i] & Flag.VMM != 0
        if kind > LAST_KVMMMU and kind < Kind.MARK_MEMSLOT and kind != Kind.PAGE_FAULT:
            continue  # probes, such as those of flushes, stand among the lines
        if run.splits:
            run.after = c.line[i] if marker else 0
            s.runs[found] = run
            found += 1
        clear(run)
        run.pid = c.pid[i] + 1
        run.before = c.line[i] if marker else 0
    return found


@dataclass(frozen=True)
class Placed:
    """Markers to move: ``first`` [n] are the lines before which ``markers`` (rows in that order) belong."""

    first: np.ndarray
    markers: Columns | None = None


def place_markers(trace: Trace) -> Placed:
    """Find the VMM's markers that stand after the lines of their ioctl."""
    search = Search(np.zeros(_TASKS, RUN), np.zeros(0, RUN))
    found, markers = [], []
    for batch in trace.batches(MARKER_COLUMNS):
        room = np.count_nonzero(batch.kind == Kind.SPLIT_HUGE_PAGE) + _TASKS
        search = search._replace(runs=np.zeros(room, RUN))
        found.append(search.runs[: find_runs(batch, search)])
        own = np.flatnonzero(batch.flags & Flag.VMM)
        markers.append(Columns(*(column[own] for column in batch)))
    runs = np.concatenate([*found, np.zeros(0, RUN)])
    if not markers or not len(runs):
        return Placed(np.zeros(0, np.int64))
    rows = Columns(*map(np.concatenate, zip(*markers, strict=True)))
    return _moved(runs[runs["after"] > 0], rows, _usual(runs))


def _usual(runs: np.ndarray) -> bool:
    """True if markers stand after the lines as far as lines with one neighbour tell; QEMU's do."""
    before, after = runs["before"] > 0, runs["after"] > 0
    return np.count_nonzero(after & ~before) >= np.count_nonzero(before & ~after)


def _moved(runs: np.ndarray, markers: Columns, usually_after: bool) -> Placed:
    number = {line: row for row, line in enumerate(markers.line.tolist())}
    spans = _spans(markers)
    moved, rows = [], []
    for run in runs[np.argsort(runs["first"])]:
        first, gfn, level, before, after = run[["first", "gfn", "level", "before", "after"]].tolist()
        row = number[after]
        if before:
            fits = [_meets(spans[number[line]], gfn, level) for line in (before, after)]
            if fits == [True, False] or (fits[0] == fits[1] and not usually_after):
                continue
        moved.append(first)
        rows.append(row)
    return Placed(np.array(moved, np.int64), Columns(*(column[rows] for column in markers)))


def _spans(markers: Columns) -> list[tuple[int, int]]:
    """The gfns that each marker is about: those of its slot, or of the range of it that is cleared."""
    slots: dict[tuple[int, int], tuple[int, int]] = {}
    spans = []
    names = ("kind", "vm", "num", "gfn", "end")
    for kind, vm, slot, first, last in zip(*(getattr(markers, name).tolist() for name in names), strict=True):
        if kind == Kind.MARK_MEMSLOT:
            slots[vm, slot] = first, last
            spans.append((first, last))
            continue
        base, end = slots.get((vm, slot), (0, 1 << 40))
        if last > end - base:
            first, last = first // PAGE_BYTES, last // PAGE_BYTES
        spans.append((base + first, base + last))
    return spans


def _meets(span: tuple[int, int], gfn: int, level: int) -> bool:
    pages = 1 << 9 * (min(max(level, 1), 3) - 1)
    return span[0] < (gfn & -pages) + pages and gfn & -pages < span[1]


def with_markers_placed(batches: Iterable[Columns], placed: Placed) -> Iterator[Columns]:
    """The events of ``batches``, each marker of ``placed`` before the first line of its ioctl.

    What stays in its old place is a marker without effect, and ends the window.
    """
    if placed.markers is None or not len(placed.first):
        yield from batches
        return
    for batch in batches:
        here = np.flatnonzero(np.isin(placed.first, batch.line))
        at = np.flatnonzero(np.isin(batch.line, placed.first[here]))
        gone = np.isin(batch.line, placed.markers.line)
        if not len(at) and not gone.any():
            yield batch
            continue
        kinds = np.where(gone, np.uint8(Kind.MARK_TEXT), batch.kind)
        made = {}
        for name, column in batch._replace(kind=kinds)._asdict().items():
            values = getattr(placed.markers, name)[here]
            if name in ("line", "ts_ns", "text"):
                values = np.full(len(at), -1, column.dtype) if name == "text" else column[at]
            made[name] = np.insert(column, at, values)
        yield Columns(**made)
