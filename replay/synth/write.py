"""The file: the header of ftrace's ``trace`` file, Linux 6.1 with option record-tgid, and the lines."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO

from replay.errors import OutputError

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
    final = Path(path)
    try:
        with tempfile.NamedTemporaryFile(dir=final.parent, prefix=f".{final.name}.", delete=False) as output:
            temporary = Path(output.name)
            try:
                _write(header, body, output)
            except BaseException:
                temporary.unlink()
                raise
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(final)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from None


def _write(header: bytes, body: IO[bytes], output: IO[bytes]) -> None:
    output.write(header)
    body.seek(0)
    shutil.copyfileobj(body, output, 1 << 20)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
