"""The scanner's registers: places of its array ``state``, by which jitted code and Python tell each other."""

from __future__ import annotations

import numpy as np

# of the header of the line at hand: number of the task, CPU, time in ns; where the CPU column begins in a
# line; what is new where the scanner stops, ``buf[START:END]``; whole seconds of the time in ns, and index of
# its fraction (0 none)
TASK, CPU, TIME, COLUMN, START, END, WHOLE, FRACTION = range(8)
# counts; why the scanner stopped; DONE: the line has been read up to there
LINES, ROWS, KVMMMU, IGNORED, MALFORMED, LOST, STOP, DONE = range(8, 16)
# DOUBTS: ask at each so many malformed lines, by stopping, 0 never; GIVEN_UP: but not at the one that begins
# there; BASE: of numbers in raw fields, 0 not known; FIRST_TIME and LAST_TIME: the least and the largest time
# of a row that has one
DOUBTS, GIVEN_UP, BASE, FIRST_TIME, LAST_TIME = range(16, 21)
# rows whose time is before that of the row before, and the line of the first of them; TIME_BEFORE: the time
# of the last row of the batch before
TIMES_BACK, FIRST_BACK, TIME_BEFORE = range(21, 24)
REGISTERS = 24
NEVER = np.iinfo(np.int64).max
"""FIRST_TIME where no row has a time."""

AT_END, ROWS_FULL, TEXTS_FULL, TASK_IS_NEW, COMMENT, DOUBTFUL, BASE_IS_NEW = range(7)
"""What STOP says.  Lines that are the reason are yet to be read, but comments have been passed."""

MAX_MALFORMED = 100
"""So many malformed lines are kept."""

# places of a row of ``Scanner.tasks``: -1 if the header is no task's, else 0; the line of the task's first VM
# activity, 0 none; what its columns are
IS_NONE, FIRST_LINE, PID, TGID, COMM = range(5)
TASK_PLACES = 5
NO_TASK = 0
"""Number of the task of a line that names none."""
