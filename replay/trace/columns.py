"""Scanned rows as columns of the event table, and what a batch of them is about."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from replay.jit import kernel
from replay.schema import Columns, Kind
from replay.trace.payload import WIDE
from replay.trace.scan import Rows

FIRST_TIME, LAST_TIME, LARGEST_ROLE, WATCHED = range(4)
VM_CREATED, REGION_SET = 1, 2
"""Bits of WATCHED: kinds that some look for, nearly always in vain."""

_WATCHED = np.zeros(256, np.int64)
_WATCHED[Kind.MARK_VM_CREATE], _WATCHED[Kind.SET_REGION] = VM_CREATED, REGION_SET


class Batch(NamedTuple):
    """Columns of some rows; times are in ns, 0 where no row has one."""

    columns: Columns
    first_time: int
    last_time: int
    largest_role: int
    watched: int


@kernel
def _fill(rows, count, of_task, facts):
    """Turn the first ``count`` of ``rows`` into columns: ``task`` becomes comm, ``text`` -1 for none.

    ``of_task`` int32[n, 3] has pid, tgid and comm of each task, ``facts`` int64[4] starts as zeros.
    """
    for n in range(count):
        row = np.uint64(n)
        task = np.uint64(rows.task[row])
        rows.pid[row], rows.tgid[row] = of_task[task, 0], of_task[task, 1]
        rows.task[row] = of_task[task, 2]
        rows.text[row] -= 1
        time = rows.ts_ns[row]
        if time > 0:
            if time < facts[FIRST_TIME] or facts[FIRST_TIME] == 0:
                facts[FIRST_TIME] = time
            facts[LAST_TIME] = max(facts[LAST_TIME], time)
        facts[LARGEST_ROLE] = max(facts[LARGEST_ROLE], np.int64(rows.role[row]))
        facts[WATCHED] |= _WATCHED[rows.kind[row]]


def columns_of(rows: Rows, count: int, of_task: np.ndarray) -> Batch:
    """The first ``count`` of ``rows`` as columns, which take their memory over; the column vm is zeros.

    ``of_task`` int32[n, 3]: pid, tgid and comm of each task.
    """
    facts = np.zeros(4, np.int64)
    _fill(rows, count, of_task, facts)
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
    return Batch(columns, *facts.tolist())
