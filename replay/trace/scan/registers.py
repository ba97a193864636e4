"""The scanner's registers and tasks as records: by them jitted code and Python tell each other."""

from __future__ import annotations

import numpy as np

REGISTERS = np.dtype(
    [
        # of the header of the line at hand
        ("task", np.int64),
        ("cpu", np.int64),
        ("time", np.int64),  # ns
        ("column", np.int64),  # where the CPU column begins in a line
        ("start", np.int64),  # what is new where the scanner stops: ``buf[start:end]``
        ("end", np.int64),
        ("whole", np.int64),  # whole seconds of the time, in ns
        ("fraction", np.int64),  # index of its fraction, 0 none
        # counts
        ("lines", np.int64),
        ("rows", np.int64),
        ("kvmmmu", np.int64),
        ("ignored", np.int64),
        ("malformed", np.int64),
        ("lost", np.int64),
        ("stop", np.int64),  # why the scanner stopped
        ("done", np.int64),  # the line has been read up to there
        ("doubts", np.int64),  # stop at each so many malformed lines, 0 never
        ("given_up", np.int64),  # but not at the one that begins there
        ("base", np.int64),  # of numbers in raw fields, 0 not known
        ("first_time", np.int64),  # the least and the largest time of a row that has one
        ("last_time", np.int64),
        ("times_back", np.int64),  # rows whose time is before that of the row before
        ("first_back", np.int64),  # the line of the first of them
        ("time_before", np.int64),  # the time of the last row of the batch before
    ]
)
NEVER = np.iinfo(np.int64).max
"""``first_time`` where no row has a time."""

AT_END, ROWS_FULL, TEXTS_FULL, TASK_IS_NEW, COMMENT, DOUBTFUL, BASE_IS_NEW = range(7)
"""What ``stop`` says.  Lines that are the reason are yet to be read, but comments have been passed."""

MAX_MALFORMED = 100
"""So many malformed lines are kept."""

TASK = np.dtype(
    [
        ("is_none", np.int64),  # -1 if the header is no task's, else 0
        ("first_line", np.int64),  # of the task's first VM activity, 0 none
        ("pid", np.int64),  # what its columns are
        ("tgid", np.int64),
        ("comm", np.int64),
    ]
)
"""A header of lines, and the task that it names."""
NO_TASK = 0
"""Number of the task of a line that names none."""
