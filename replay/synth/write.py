"""Lines as ftrace prints them: the ``trace`` file of Linux 6.1 with option record-tgid."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from replay.errors import OutputError

if TYPE_CHECKING:
    from replay.synth.digits import Piece

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
UNLOCKED, LOCKED, LOCKED_TWICE, IRQS_OFF = ".....", "...1.", "...2.", "d...."
"""irq-info flags: outside of mmu_lock, under it, under it and mmu_unsync_pages_lock, irqs disabled."""
CHUNK_LINES = 1 << 14
SECOND_US = 1000000
START_S = 100


class Task:
    """The start of a thread's lines, up to the flags."""

    def __init__(self, comm: str, pid: int, tgid: int, cpu: int) -> None:
        start = f"{comm[:15]:>16}-{pid:<7d} ({tgid:7d}) [{cpu:03d}] "
        self.unlocked = f"{start}{UNLOCKED} "
        self.locked = f"{start}{LOCKED} "
        self.locked_twice = f"{start}{LOCKED_TWICE} "
        self.irqs_off = f"{start}{IRQS_OFF} "


class TraceWriter:
    """Collects lines in a temporary file; the clock goes one microsecond a line."""

    def __init__(self, body: IO[bytes], start_s: int) -> None:
        self.body = body
        self.count = 0
        self._lines: list[str] = []
        self._append = self._lines.append
        self._second = start_s
        self._second_text = f"{start_s:5d}."
        self._us = 0

    def emit(self, start: str, event: str) -> None:
        """Append one line: ``start`` is one of a task's prefixes, ``event`` is ``name: text``."""
        us = self._us = self._us + 1
        if us >= SECOND_US:
            us = self._next_second()
        self._append(f"{start}{self._second_text}{us:06d}: {event}\n")

    def _next_second(self) -> int:
        seconds, self._us = divmod(self._us, SECOND_US)
        self._second += seconds
        self._second_text = f"{self._second:5d}."
        return self._us

    def emit_run(self, pieces: list[Piece], lines: int, count: int, pause_us: int) -> None:
        """Append ``pieces``, ``lines`` lines, ``count`` times, each time behind a pause of ``pause_us``."""
        from replay.synth.digits import render

        self.flush()
        period = pause_us + lines
        start = self._second * SECOND_US + self._us
        self.body.writelines(render(pieces, count, start + pause_us + 1, period))
        self.count += count * lines
        self._second, self._us = divmod(start + period * count, SECOND_US)
        self._second_text = f"{self._second:5d}."

    def pause(self, microseconds: int) -> None:
        """Let time pass, and write out what has piled up."""
        self._us += microseconds
        if len(self._lines) > CHUNK_LINES:
            self.flush()

    def flush(self) -> None:
        """Write the collected lines to the body."""
        self.count += len(self._lines)
        self.body.write("".join(self._lines).encode())
        self._lines.clear()


def finish(writer: TraceWriter, output: IO[bytes], cpus: int) -> None:
    """Write header and body to ``output``."""
    writer.flush()
    output.write(HEADER.format(lines=writer.count, cpus=cpus).encode())
    writer.body.seek(0)
    shutil.copyfileobj(writer.body, output, 1 << 20)


def open_body() -> IO[bytes]:
    """A temporary file for the lines, gone when closed."""
    return tempfile.SpooledTemporaryFile(max_size=1 << 26)


def save(writer: TraceWriter, path: str | os.PathLike[str], cpus: int) -> None:
    """Write the trace to ``path`` by way of a temporary name, or to standard output for ``-``."""
    if os.fspath(path) == "-":
        finish(writer, sys.stdout.buffer, cpus)
        sys.stdout.buffer.flush()
        return
    final = Path(path)
    try:
        with tempfile.NamedTemporaryFile(dir=final.parent, prefix=f".{final.name}.", delete=False) as output:
            temporary = Path(output.name)
            try:
                finish(writer, output, cpus)
            except BaseException:
                temporary.unlink()
                raise
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(final)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
