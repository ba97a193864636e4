"""The file: the header of ftrace's ``trace`` file, Linux 6.1 with option record-tgid, and the lines."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from typing import IO

from replay.errors import OutputError
from replay.output import replacing

HEADER = """\
# tracer: nop
#
# entries-in-buffer/entries-written: {lines}/{lines}   #P:{cpus}
#
#                                          _-----=> irqs-off/BH-disabled
#                                         / _----=> need-resched
#                                        | / _---=> hardirq/softirq
#                                        || / _--=> preempt-depth
#                                        ||| / _-=> migrate-disable
#                                        |||| /     delay
#           TASK-PID       TGID    CPU#  |||||  TIMESTAMP  FUNCTION
#              | |           |       |   |||||     |         |
"""


def open_body() -> IO[bytes]:
    """A temporary file for the lines, gone when closed: the header, which comes first, counts them."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise OutputError(tempfile.gettempdir(), error.strerror or str(error)) from None


def save(body: IO[bytes], lines: int, cpus: int, path: str | os.PathLike[str]) -> None:
    """Write header and body to ``path`` by way of a temporary name, or to standard output for ``-``."""
    header = HEADER.format(lines=lines, cpus=cpus).encode()
    if os.fspath(path) == "-":
        _write(header, body, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with replacing(path) as temporary, open(temporary, "wb") as output:
        _write(header, body, output)


def _write(header: bytes, body: IO[bytes], output: IO[bytes]) -> None:
    output.write(header)
    body.seek(0)
    shutil.copyfileobj(body, output, 1 << 20)
