"""Result tables of a finished replay: the rows of its state as Arrow columns."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa

from replay.arrow import arrow_array, words_array
from replay.mmu import layout, state, window
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

_OUT = {"gfn": window.OUT_GFN, "spte": window.OUT_SPTE, "sptep": window.OUT_SPTEP}
_OUT32 = {"window": window.OUT32_WINDOW, "role": window.OUT32_ROLE, "retries": window.OUT32_RETRIES}
_OUT16 = {
    "level": window.OUT16_LEVEL,
    "outcome": window.OUT16_OUTCOME,
    "errno": window.OUT16_ERRNO,
    "installed": window.OUT16_INSTALLED,
    "nonpresent": window.OUT16_NONPRESENT,
    "reused": window.OUT16_REUSED,
    "match": window.OUT16_MATCH,
}
_SOURCE = {
    "recorded": window.SOURCE_RECORDED,
    "ts_ns": window.SOURCE_TS,
    "line": window.SOURCE_LINE,
    "recorded_gfn": window.SOURCE_GFN,
    "recorded_spte": window.SOURCE_SPTE,
    "recorded_level": window.SOURCE_LEVEL,
    "recorded_errno": window.SOURCE_ERRNO,
}
_PLACE = ("window", "vm", "ts_ns", "line", "match")


def attempts(m: state.Mmu) -> dict[str, np.ndarray]:
    """One array a column of ``outcome_schema()``, in the width in which it is kept.

    Without an attempt, only a recorded line, ``outcome`` is negative; without such a line, ``recorded`` is 0.
    """
    top = m.ctl[layout.CTL_OUT_TOP]
    columns = {
        name: table[:top, column]
        for table, names in ((m.out, _OUT), (m.out32, _OUT32), (m.out16, _OUT16))
        for name, column in names.items()
    }
    flags = m.out16[:top, window.OUT16_FLAGS]
    columns["mmu"] = flags & window.ATTEMPT_TDP
    columns["child_created"] = flags & window.ATTEMPT_CREATED != 0
    columns["flush"] = flags & window.ATTEMPT_FLUSHED != 0
    sources = m.source[: m.ctl[layout.CTL_SOURCE_TOP]]
    rows = m.out32[:top, window.OUT32_SOURCE]
    columns |= {name: _taken(sources[:, column], rows) for name, column in _SOURCE.items()}
    columns["vm"] = _taken(m.window[:, window.WIN_VM], columns["window"])
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


def outcomes(m: state.Mmu) -> pa.Table:
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


def flushes(m: state.Mmu) -> pa.Table:
    """The table of ``flush_schema()``."""
    rows = m.flush[: m.ctl[layout.CTL_FLUSH_TOP]]
    arrays: dict[str, Any] = {
        name: (rows[:, column], None)
        for name, column in {
            "window": window.FLUSH_WINDOW,
            "vm": window.FLUSH_VM,
            "ts_ns": window.FLUSH_TS,
            "line": window.FLUSH_LINE,
            "start_gfn": window.FLUSH_START,
            "end_gfn": window.FLUSH_END,
        }.items()
    }
    arrays["cause"] = _words(rows[:, window.FLUSH_CAUSE], FlushCause)
    return _as_table(flush_schema(), arrays, len(rows))


def windows(m: state.Mmu, flush_probes: bool) -> pa.Table:
    """The table of ``window_schema()``; ``flush_probes``: the trace tells which flushes were recorded."""
    rows = m.window[: m.ctl[layout.CTL_WINDOW_TOP]]
    slot_rows = rows[:, window.WIN_SLOT]
    slot_ids = np.where(slot_rows >= 0, m.slot[np.maximum(slot_rows, 0), layout.SLOT_ID], 0)
    columns = {
        "vm": window.WIN_VM,
        "start_gfn": window.WIN_START,
        "end_gfn": window.WIN_END,
        "target_level": window.WIN_TARGET,
        "begin_ts_ns": window.WIN_TS,
        "begin_line": window.WIN_LINE,
        "attempts": window.WIN_ATTEMPTS,
        "split": window.WIN_SPLIT,
        "retries": window.WIN_RETRIED,
        "flushes_lost": window.WIN_FLUSHES_LOST,
        "tdp_attempts": window.WIN_TDP_ATTEMPTS,
        "tdp_split": window.WIN_TDP_SPLIT,
    }
    columns |= {f"skipped_{word}": window.WIN_SKIPPED + i for i, word in enumerate(SKIP_WORDS)}
    columns |= {f"flushes_{cause.name.lower()}": window.WIN_FLUSHES + cause for cause in FlushCause}
    arrays: dict[str, Any] = {name: (rows[:, column], None) for name, column in columns.items()}
    failed = rows[:, window.WIN_TDP_ATTEMPTS] - rows[:, window.WIN_TDP_SPLIT]
    arrays["tdp_failed"] = (failed, None)
    arrays["index"] = (np.arange(len(rows)), None)
    arrays["slot"] = (slot_ids, slot_rows < 0)
    arrays["cause"] = _words(rows[:, window.WIN_CAUSE], WindowCause)
    totals = rows[:, window.WIN_FLUSHES : window.WIN_FLUSHES + len(FlushCause)].sum(axis=1)
    arrays["flushes_total"] = (totals, None)
    unrecorded = None if flush_probes else np.ones(len(rows), bool)
    arrays["doubted"] = (rows[:, window.WIN_DOUBTED] != 0, None)
    arrays["flushes_recorded"] = (rows[:, window.WIN_FLUSH_LINES], unrecorded)
    return _as_table(window_schema(), arrays, len(rows))
