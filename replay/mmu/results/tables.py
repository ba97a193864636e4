"""Result tables of a finished replay: the rows of its state as Arrow columns."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa

from replay.arrow import arrow_array, words_array
from replay.mmu.recorded.lines import RECORDED
from replay.mmu.state import mmu
from replay.mmu.state.records import AttemptFlag
from replay.schema import (
    SKIP_WORDS,
    FlushCause,
    Match,
    Outcome,
    WindowCause,
    flush_schema,
    outcome_schema,
    window_schema,
)

_ATTEMPT = (
    "gfn", "spte", "sptep", "window", "role", "retries",
    "level", "outcome", "errno", "installed", "nonpresent", "reused", "match",
)  # fmt: skip
_SOURCE = {
    "recorded": "recorded",
    "ts_ns": "ts",
    "line": "line",
    "recorded_gfn": "gfn",
    "recorded_spte": "spte",
    "recorded_level": "level",
    "recorded_errno": "errno",
}
_FLUSH = {
    "window": "window",
    "vm": "vm",
    "ts_ns": "ts",
    "line": "line",
    "start_gfn": "start",
    "end_gfn": "end",
}
_WINDOW = {
    "vm": "vm",
    "start_gfn": "start",
    "end_gfn": "end",
    "target_level": "target",
    "begin_ts_ns": "ts",
    "begin_line": "line",
    "attempts": "attempts",
    "split": "split",
    "retries": "retried",
    "flushes_lost": "flushes_lost",
    "tdp_attempts": "tdp_attempts",
    "tdp_split": "tdp_split",
}
_PLACE = ("window", "vm", "ts_ns", "line", "match")


def attempts(m: mmu.Mmu) -> dict[str, np.ndarray]:
    """One array a column of ``outcome_schema()``, in the width in which it is kept.

    Without an attempt, only a recorded line, ``outcome`` is negative; without such a line, ``recorded`` is 0.
    """
    rows = m.attempt[: m.ctl.attempt_top]
    columns = {name: rows[name] for name in _ATTEMPT}
    columns["mmu"] = rows.attempt_flags & AttemptFlag.TDP
    columns["child_created"] = rows.attempt_flags & AttemptFlag.CREATED != 0
    columns["flush"] = rows.attempt_flags & AttemptFlag.FLUSHED != 0
    sources = m.source[: m.ctl.source_top]
    columns |= {name: _taken(sources[field], rows.source) for name, field in _SOURCE.items()}
    columns["vm"] = _taken(m.window.vm, rows.window)
    return columns


def _taken(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The value of each row, mostly the same of all."""
    value = values[rows[:1]]
    if len(rows) and (len(values) == 1 or (values == value).all() or (rows == rows[0]).all()):
        return np.broadcast_to(value, len(rows))
    return values.take(rows)


def _words(codes: np.ndarray, enum: type[IntEnum]) -> pa.Array:
    """A dictionary array of the lower-case words of ``enum``; a negative code is null."""
    return words_array(codes, tuple(member.name.lower() for member in enum))


def _if_any(mask: np.ndarray) -> np.ndarray | None:
    return mask if mask.any() else None


def _as_table(schema: pa.Schema, arrays: dict[str, Any], rows: int) -> pa.Table:
    """A table of ``schema``; arrays are Arrow arrays or (numbers, null mask or None)."""
    # one block: memory comes in large pages, and nulls only take none
    block = np.empty(rows * 8 * len(schema), np.uint8)
    nothing = pa.py_buffer(np.zeros(rows * 8, np.uint8))
    begin = 0
    columns = []
    for column in schema:
        array = arrays[column.name]
        if isinstance(array, tuple):
            numbers, mask = array
            if mask is not None and mask.all():
                array = pa.Array.from_buffers(column.type, rows, [nothing, nothing], rows)
            else:
                kind = np.dtype(column.type.to_pandas_dtype())
                values = block[begin : begin + rows * kind.itemsize].view(kind)
                np.copyto(values, numbers, casting="unsafe")
                array = arrow_array(values, column.type, mask)
                begin += rows * 8
        columns.append(array)
    return pa.table(columns, schema=schema)


def outcomes(m: mmu.Mmu) -> pa.Table:
    """The table of ``outcome_schema()``."""
    schema = outcome_schema()
    columns = attempts(m)
    only_recorded = _if_any(columns["outcome"] < 0)
    unrecorded = _if_any(columns["recorded"] == 0)
    arrays: dict[str, Any] = {}
    for column in schema:
        name = column.name
        mask = None if name in _PLACE else only_recorded
        if name.startswith("recorded_"):
            mask = unrecorded
        elif name == "sptep":
            unknown = columns[name] < 0
            mask = _if_any(unknown if only_recorded is None else unknown | only_recorded)
        arrays[name] = (columns[name], mask)
    arrays["mmu"] = words_array(columns["mmu"], ("shadow", "tdp"))
    arrays["outcome"] = _words(columns["outcome"], Outcome)
    arrays["match"] = _words(columns["match"], Match)
    return _as_table(schema, arrays, len(columns["gfn"]))


def flushes(m: mmu.Mmu) -> pa.Table:
    """The table of ``flush_schema()``."""
    rows = m.flush[: m.ctl.flush_top]
    arrays: dict[str, Any] = {name: (rows[field], None) for name, field in _FLUSH.items()}
    arrays["cause"] = _words(rows.cause, FlushCause)
    return _as_table(flush_schema(), arrays, len(rows))


def windows(m: mmu.Mmu, flush_probes: bool) -> pa.Table:
    """The table of ``window_schema()``; ``flush_probes``: the trace tells which flushes were recorded."""
    rows = m.window[: m.ctl.window_top]
    slot_rows = rows.slot
    slot_ids = np.where(slot_rows >= 0, m.slot.id[np.maximum(slot_rows, 0)], 0)
    columns = {name: rows[field] for name, field in _WINDOW.items()}
    columns |= {f"skipped_{word}": rows.skipped[:, i] for i, word in enumerate(SKIP_WORDS)}
    columns |= {f"flushes_{cause.name.lower()}": rows.flushes[:, cause] for cause in FlushCause}
    arrays: dict[str, Any] = {name: (column, None) for name, column in columns.items()}
    failed = rows.tdp_attempts - rows.tdp_split
    arrays["tdp_failed"] = (failed, None)
    arrays["index"] = (np.arange(len(rows)), None)
    arrays["slot"] = (slot_ids, slot_rows < 0)
    arrays["cause"] = _words(rows.cause, WindowCause)
    totals = rows.flushes.sum(axis=1)
    arrays["flushes_total"] = (totals, None)
    unrecorded = None if flush_probes else np.ones(len(rows), bool)
    arrays["doubted"] = (rows.doubted != 0, None)
    arrays["flushes_recorded"] = (rows.flush_lines[:, RECORDED], unrecorded)
    return _as_table(window_schema(), arrays, len(rows))
