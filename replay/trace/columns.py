"""Scanned rows as columns of the event table, and what a batch of them is about."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from replay.schema import Columns
from replay.trace.payload import WIDE
from replay.trace.scan import Rows


class Batch(NamedTuple):
    """Columns of some rows."""

    columns: Columns
    first_time: int  # ns; 0 where no row has a time
    last_time: int


def columns_of(rows: Rows, count: int, of_task: np.ndarray) -> Batch:
    """The first ``count`` of ``rows`` as columns, which take their memory over; the column vm is zeros.

    ``of_task`` int32[3, n]: pid, tgid and comm of each task.
    """
    tasks = rows.task[:count].astype(np.intp)  # what ``take`` would make of them each time
    for values, column in zip(of_task, (rows.pid, rows.tgid, rows.task), strict=True):
        np.take(values, tasks, out=column[:count], mode="clip")
    np.subtract(rows.text[:count], 1, out=rows.text[:count])
    times = rows.ts_ns[:count]
    timed = times if times.min() > 0 else times[times > 0]
    first, last = (int(timed.min()), int(timed.max())) if len(timed) else (0, 0)
    wide = {name: rows.wide[n, :count] for n, name in enumerate(WIDE)}
    wide["num"] = wide["num"].view(np.int64)
    columns = Columns(
        kind=rows.kind[:count],
        vm=rows.vm[:count],
        pid=rows.pid[:count],
        tgid=rows.tgid[:count],
        cpu=rows.cpu[:count],
        level=rows.level[:count],
        flags=rows.flags[:count],
        role=rows.role[:count],
        ts_ns=rows.ts_ns[:count],
        line=rows.line[:count],
        comm=rows.task[:count],
        text=rows.text[:count],
        **wide,
    )
    return Batch(columns, first, last)
