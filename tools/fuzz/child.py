"""A process that takes inputs, and is made anew when one of them ends it or takes too long."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
import traceback
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HANG_SECONDS = 20
"""Of processor time: other processes use the machine, too."""
STUCK_SECONDS = 600
"""Of time, for what waits for ever."""
MOST_BYTES = 3 << 30
_LOOK_SECONDS = 0.25
_READY = "ready"
_START_SECONDS = 1800
"""A process compiles the kernels first, where they are not kept."""
_SAID_BYTES = 2000


@dataclass(frozen=True)
class Case:
    """An input and what chooses its options."""

    data: bytes
    suffix: str
    companion: str
    options: int


@dataclass(frozen=True)
class Failure:
    """What went wrong; ``kind`` is the same for the same defect."""

    kind: str
    text: str


class Child:
    """Runs cases of one target; use as a context."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._process: Any = None
        self._connection: Connection | None = None
        self._directory = tempfile.TemporaryDirectory(prefix="replay-fuzz-")
        self._said = Path(self._directory.name, "stderr")
        self._said.touch()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        self._directory.cleanup()

    def run(self, case: Case) -> Failure | None:
        """What goes wrong with a case, None if nothing does."""
        if self._connection is None:
            self.start()
        assert self._connection is not None
        path = Path(self._directory.name, f"input{case.suffix}")
        path.write_bytes(case.data)
        try:
            self._connection.send((str(path), case.companion, case.options))
            failure = self._answer()
        except (EOFError, OSError):
            failure = self._died()
        if failure is not None and not failure.kind.startswith("raises"):
            self._end()
        return failure

    def start(self) -> None:
        """Have a process that is ready for a case."""
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(self._target, theirs, str(self._said)), daemon=True
        )
        self._process.start()
        theirs.close()
        self._connection = ours
        if not ours.poll(_START_SECONDS) or ours.recv() != _READY:
            raise RuntimeError(f"a process does not start: {self._output()}")

    def _end(self) -> None:
        if self._connection is None:
            return
        self._connection.close()
        self._connection = None
        self._process.kill()
        self._process.join()

    def _answer(self) -> Failure | None:
        assert self._connection is not None
        pid = self._process.pid
        begun, used = time.monotonic(), _processor_seconds(pid)
        while not self._connection.poll(_LOOK_SECONDS):
            is_stuck = time.monotonic() - begun > STUCK_SECONDS
            if is_stuck or _processor_seconds(pid) - used > HANG_SECONDS:
                os.kill(pid, signal.SIGABRT)  # faulthandler then says where it is
                self._process.join(10)
                return Failure(f"hangs {_last_frame(self._output())}", self._output())
            if (taken := _resident(pid)) > MOST_BYTES:
                return Failure("takes too much memory", f"{taken >> 20} MiB")
        answer: Failure | None = self._connection.recv()
        return answer

    def _died(self) -> Failure:
        self._process.join()
        said = self._output()
        out_of_bounds = re.search(r"^(\S+): (index -?\d+ of|exception)", said, re.MULTILINE)
        where = out_of_bounds[1] if out_of_bounds else _last_frame(said)
        return Failure(f"dies {signal.Signals(-self._process.exitcode).name} {where}", said)

    def _output(self) -> str:
        return self._said.read_bytes()[-_SAID_BYTES:].decode(errors="replace")


def _last_frame(text: str) -> str:
    """The place in a dump of faulthandler."""
    found = re.search(r'File "[^"]*?/?(replay/[^"]+)", line \d+ in (\w+)', text)
    return f"{found[1]}:{found[2]}" if found else ""


def _processor_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _serve(target: str, connection: Connection, said: str) -> None:
    """The process: its standard error, with what ends it, goes to the file ``said``."""
    import faulthandler

    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from tools.fuzz.pipeline import run, warm_up

    warm_up()
    connection.send(_READY)
    while True:
        try:
            path, companion, options = connection.recv()
        except EOFError:
            return
        os.ftruncate(out, 0)
        connection.send(_tried(target, Path(path), companion, options, run))


def _tried(target: str, path: Path, companion: str, options: int, run: Any) -> Failure | None:
    try:
        run(target, path, companion, options)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/replay/" in frame.filename] or frames
        place = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
        # of a failed check, what it says without its numbers
        what = re.sub(r"\d+", "N", str(error))[:60] if isinstance(error, AssertionError) else ""
        return Failure(f"raises {type(error).__name__} {place} {what}".strip(), traceback.format_exc())
    return None
