"""Scanned rows as columns of the event table."""

from __future__ import annotations

import numpy as np

from replay.schema import COLUMN_TYPES, Columns
from replay.trace.payload import WIDE
from replay.trace.scan import Rows


def columns_of(rows: Rows, count: int) -> Columns:
    """The first ``count`` of ``rows`` as columns, which take their memory over; the column vm is zeros."""
    wide = {name: rows.wide[n, :count] for n, name in enumerate(WIDE)}
    wide["num"] = wide["num"].view(np.int64)
    narrow = {name: getattr(rows, name)[:count] for name in COLUMN_TYPES if name not in wide}
    return Columns(**narrow, **wide)
