"""Markers that the VMM itself writes, moved to where the ioctl began that each tells of.

QEMU writes them when the ioctl is over, so that the lines of a split stand before the marker which says
what was split; others may write them first.  Which, is told by the lines around and by their gfns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replay.jit import kernel
from replay.mmu.kinds import (
    GET_PAGE,
    LAST_KVMMMU,
    MARK_CLEAR_DIRTY_LOG,
    MARK_MEMSLOT,
    PREPARE_ZAP,
    SPLIT_HUGE_PAGE,
    SYNC_PAGE,
    TDP_CHANGED,
    VMM,
)
from replay.mmu.role import DIRECT
from replay.schema import Columns, Kind

if TYPE_CHECKING:
    from replay.trace.trace import Trace

MARKER_COLUMNS = ("kind", "vm", "pid", "role", "level", "flags", "line", "gfn", "end", "num", "code", "addr")
"""What is read of an event to place markers."""
_TASKS = 1024
# of a task: pid, then the run of lines of splits it is in, as in a row of ``runs``, and how many splits
TASK_PID, TASK_RUN, TASK_SPLITS, TASK_COLUMNS = 0, 1, 6, 7
# of a run: its first line, the gfn and level of its first split, the VMM's marker right before it, and after
FIRST, GFN, LEVEL, BEFORE, AFTER, RUN_COLUMNS = 0, 1, 2, 3, 4, 5
PAGE_BYTES = 4096


@kernel
def find_runs(c: Columns, tasks: np.ndarray, runs: np.ndarray) -> int:
    """Fill ``runs`` [n, RUN_COLUMNS] with those that end in ``c``; how many.  ``tasks`` [_TASKS, columns]."""
    found = 0
    for i in range(len(c.kind)):
        kind = c.kind[i]
        task = tasks[c.pid[i] & (_TASKS - 1)]
        if task[TASK_PID] != c.pid[i] + 1:
            task[:] = 0
            task[TASK_PID] = c.pid[i] + 1
        starts = kind == SPLIT_HUGE_PAGE or kind == TDP_CHANGED
        starts |= kind == GET_PAGE and np.int64(c.role[i]) & DIRECT != 0
        if starts or kind == PREPARE_ZAP or kind == SYNC_PAGE:
            if starts and task[TASK_RUN + FIRST] == 0:
                task[TASK_RUN + FIRST] = c.line[i]
            if kind == SPLIT_HUGE_PAGE and task[TASK_SPLITS] == 0:
                task[TASK_RUN + GFN], task[TASK_RUN + LEVEL] = np.int64(c.gfn[i]), np.int64(c.level[i])
            task[TASK_SPLITS] += kind == SPLIT_HUGE_PAGE
            continue
        marker = (kind == MARK_MEMSLOT or kind == MARK_CLEAR_DIRTY_LOG) and c.flags[i] & VMM != 0
        if kind > LAST_KVMMMU and kind < MARK_MEMSLOT and kind != Kind.PAGE_FAULT:
            continue  # probes, such as those of flushes, stand among the lines
        if task[TASK_SPLITS]:
            task[TASK_RUN + AFTER] = c.line[i] if marker else 0
            for column in range(RUN_COLUMNS):
                runs[found, column] = task[TASK_RUN + column]
            found += 1
        task[TASK_RUN:] = 0
        task[TASK_RUN + BEFORE] = c.line[i] if marker else 0
    return found


@dataclass(frozen=True)
class Placed:
    """Markers to move: ``first`` [n] are the lines before which ``markers`` (rows in that order) belong."""

    first: np.ndarray
    markers: Columns | None = None


def place_markers(trace: Trace) -> Placed:
    """Find the VMM's markers that stand after the lines of their ioctl."""
    tasks = np.zeros((_TASKS, TASK_COLUMNS), np.int64)
    runs, markers = [], []
    for batch in trace.batches(MARKER_COLUMNS):
        room = np.zeros((np.count_nonzero(batch.kind == SPLIT_HUGE_PAGE) + _TASKS, RUN_COLUMNS), np.int64)
        runs.append(room[: find_runs(batch, tasks, room)])
        own = np.flatnonzero(batch.flags & VMM)
        markers.append(Columns(*(column[own] for column in batch)))
    all_runs = np.concatenate([*runs, np.zeros((0, RUN_COLUMNS), np.int64)])
    if not markers or not len(all_runs):
        return Placed(np.zeros(0, np.int64))
    rows = Columns(*map(np.concatenate, zip(*markers, strict=True)))
    return _moved(all_runs[all_runs[:, AFTER] > 0], rows, _usual(all_runs))


def _usual(runs: np.ndarray) -> bool:
    """True if markers stand after the lines as far as lines with one neighbour tell; QEMU's do."""
    before, after = runs[:, BEFORE] > 0, runs[:, AFTER] > 0
    return np.count_nonzero(after & ~before) >= np.count_nonzero(before & ~after)


def _moved(runs: np.ndarray, markers: Columns, after: bool) -> Placed:
    number = {line: row for row, line in enumerate(markers.line.tolist())}
    spans = _spans(markers)
    first, rows = [], []
    for run in runs[np.argsort(runs[:, FIRST])].tolist():
        row = number[run[AFTER]]
        if run[BEFORE]:
            fits = [_meets(spans[number[run[place]]], run[GFN], run[LEVEL]) for place in (BEFORE, AFTER)]
            if fits == [True, False] or (fits[0] == fits[1] and not after):
                continue
        first.append(run[FIRST])
        rows.append(row)
    return Placed(np.array(first, np.int64), Columns(*(column[rows] for column in markers)))


def _spans(markers: Columns) -> list[tuple[int, int]]:
    """The gfns that each marker is about: those of its slot, or of the range of it that is cleared."""
    slots: dict[tuple[int, int], tuple[int, int]] = {}
    spans = []
    names = ("kind", "vm", "num", "gfn", "end")
    for kind, vm, slot, first, last in zip(*(getattr(markers, name).tolist() for name in names), strict=True):
        if kind == MARK_MEMSLOT:
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
