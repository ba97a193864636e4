"""Migrations as a whole: from enabling dirty logging for the first slot to disabling it for the last.

Slots of one VM whose logging overlaps are one migration.  A slot that is still logged at the end of the
trace, and was so all through another slot's logging, is a display's and is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from replay.schema import Kind

if TYPE_CHECKING:
    import pyarrow as pa

    from replay.trace.trace import Trace

_DELETE = 1  # KVM_MR_DELETE, of commit_region
_LOG_DIRTY_PAGES = 1  # KVM_MEM_LOG_DIRTY_PAGES, of flags
_COLUMNS = ("kind", "vm", "pid", "num", "code", "gfn", "end", "line", "ts_ns")
_KINDS = (Kind.SET_REGION, Kind.COMMIT_REGION, Kind.MARK_MEMSLOT, Kind.MARK_GET_DIRTY_LOG)
_SUMS = ("attempts", "split", "retries", "flushes_total", "tdp_attempts", "tdp_split", "tdp_failed")
_PLACE = ("vm", "begin_line", "start_gfn")


class _Row(NamedTuple):
    """A control line, columns of the event table."""

    kind: int
    vm: int
    pid: int
    num: int
    code: int
    gfn: int
    end: int
    line: int
    ts_ns: int


@dataclass
class _Logging:
    """One slot's dirty logging; ``off`` is None if it never ends."""

    slot: int
    gfns: tuple[int, int]
    on: _Row
    off: _Row | None = None

    def ends_before(self, line: int) -> bool:
        return self.off is not None and self.off.line < line

    def contains(self, other: _Logging) -> bool:
        """Whether ``other`` begins later and ends, while this one lasts to the end of the trace."""
        return self.off is None and other.off is not None and self.on.line < other.on.line


@dataclass
class _Migration:
    """Overlapping loggings of one VM; ``previous_end`` is the line at which the earlier ones ended."""

    vm: int
    loggings: list[_Logging]
    previous_end: int

    @property
    def on(self) -> _Row:
        return self.loggings[0].on

    @property
    def off(self) -> _Row | None:
        ends = [each.off for each in self.loggings if each.off]
        return max(ends, key=lambda row: row.line) if len(ends) == len(self.loggings) else None


def migrations(trace: Trace, windows: pa.Table) -> list[dict[str, Any]]:
    """``migrations`` of the run document; ``windows`` is the table of the run's windows."""
    rows = _control_rows(trace)
    found = []
    for vm, loggings in _loggings(rows).items():
        ended = 0
        for group in _overlapping(_passing(loggings)):
            found.append(_Migration(vm, group, ended))
            ended = max((each.off.line for each in group if each.off), default=0)
    found.sort(key=lambda each: each.on.line)
    numbers = {name: windows[name].to_numpy() for name in (*_PLACE, *_SUMS)} if found else {}
    numbers |= {cause: _is_of(windows, cause) for cause in ("memslot_flags", "clear_dirty_log")}
    gets = [row for row in rows if row.kind == Kind.MARK_GET_DIRTY_LOG]
    has_times = trace.last_ts_ns is not None
    return [{"index": index, **_figures(each, numbers, gets, has_times)} for index, each in enumerate(found)]


def _is_of(windows: pa.Table, cause: str) -> np.ndarray:
    return np.array([each == cause for each in windows["cause"].to_pylist()], bool)


def _control_rows(trace: Trace) -> list[_Row]:
    """The lines of ``_KINDS`` that belong to a VM, in order."""
    counts = trace.kind_counts()
    if not any(counts[kind] for kind in _KINDS):
        return []
    rows: list[_Row] = []
    for batch in trace.batches(_COLUMNS):
        chosen = np.flatnonzero(np.isin(batch.kind, _KINDS) & (batch.vm >= 0))
        columns = (getattr(batch, name)[chosen].tolist() for name in _COLUMNS)
        rows += map(_Row, *columns)
    return rows


def _loggings(rows: Sequence[_Row]) -> dict[int, list[_Logging]]:
    """By VM, in the order of their beginnings.  Markers count if no probe shows the commit."""
    probed = {row.vm for row in rows if row.kind == Kind.COMMIT_REGION}
    found: dict[int, list[_Logging]] = {}
    logged: dict[tuple[int, int], _Logging] = {}
    entered: dict[int, _Row] = {}
    for row in rows:
        begin = row
        if row.kind == Kind.SET_REGION:
            entered[row.pid] = row
            continue
        if row.kind == Kind.COMMIT_REGION:
            if row.pid not in entered:
                continue
            begin = entered.pop(row.pid)
        elif row.kind != Kind.MARK_MEMSLOT or row.vm in probed:
            continue
        is_deleted = begin.end <= begin.gfn or (row.kind == Kind.COMMIT_REGION and row.num == _DELETE)
        key = row.vm, begin.num
        if is_deleted or not begin.code & _LOG_DIRTY_PAGES:
            if key in logged:
                logged.pop(key).off = row
        elif key not in logged:
            logged[key] = _Logging(begin.num, (begin.gfn, begin.end), begin)
            found.setdefault(row.vm, []).append(logged[key])
    return found


def _passing(loggings: list[_Logging]) -> list[_Logging]:
    return [each for each in loggings if not any(map(each.contains, loggings))]


def _overlapping(loggings: list[_Logging]) -> Iterator[list[_Logging]]:
    group: list[_Logging] = []
    for each in loggings:
        if group and all(other.ends_before(each.on.line) for other in group):
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _figures(
    migration: _Migration, windows: dict[str, np.ndarray], gets: list[_Row], has_times: bool
) -> dict[str, Any]:
    on, off = migration.on, migration.off
    last = off.line if off else 1 << 62
    lines = windows["begin_line"]
    # a marker that the VMM writes after the ioctl comes after the window that it opened
    begun = (lines >= on.line) | (windows["memslot_flags"] & (lines > migration.previous_end))
    inside = (windows["vm"] == migration.vm) & begun & (lines <= last)
    sums = {name: int(windows[name][inside].sum()) for name in _SUMS}
    asked = Counter(row.num for row in gets if row.vm == migration.vm and on.line <= row.line <= last)
    return {
        "vm": migration.vm,
        "slots": len({each.slot for each in migration.loggings}),
        "on_ts_ns": on.ts_ns if has_times else None,
        "on_line": on.line,
        "off_ts_ns": off.ts_ns if has_times and off else None,
        "off_line": off.line if off else None,
        "get_dirty_log": max(asked.values(), default=0),
        "clear_dirty_log": _sweeps(
            migration.loggings, windows["start_gfn"][inside & windows["clear_dirty_log"]]
        ),
        "windows": int(inside.sum()),
        "attempts": sums["attempts"],
        "split": sums["split"],
        "retries": sums["retries"],
        "flushes": sums["flushes_total"],
        "tdp": {word: sums[f"tdp_{word}"] for word in ("attempts", "split", "failed")},
    }


def _sweeps(group: list[_Logging], starts: np.ndarray) -> int:
    """Sweeps of KVM_CLEAR_DIRTY_LOG: the largest number of times that any gfn was cleared.

    One sweep clears a gfn once in each address space that has a logged slot there.
    """
    most = 0
    for gfn, count in zip(*map(np.ndarray.tolist, np.unique(starts, return_counts=True)), strict=True):
        spaces = {each.slot >> 16 for each in group if each.gfns[0] <= gfn < each.gfns[1]}
        most = max(most, -(-count // max(len(spaces), 1)))
    return most
