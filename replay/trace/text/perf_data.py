"""``perf.data`` through the installed ``perf script``."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile

from replay.errors import TraceError

_FIELDS = ("comm", "pid", "tid", "cpu", "time", "event", "trace")
_NEEDED = ("event", "trace")
_MISSING = re.compile(r"do not have \w+ attribute set\. Cannot print '(\w+)' field")
_LOST = re.compile(r"lost (\d+) (?:events|samples|chunks)")


class PerfScript:
    """The text that ``perf script`` prints of a perf.data file, read as a ``replay.trace.source.Source``.

    Raises TraceError where there is no perf, or where perf cannot read the file.
    """

    format = "perf.data"
    size = None

    def __init__(self, path: str) -> None:
        self.path = path
        program = shutil.which("perf")
        if path == "-":
            raise TraceError(path, 0, "a perf.data file cannot be read from standard input: give its path")
        if program is None:
            message = "a perf.data file, and there is no perf: install it, or give the text of perf script"
            raise TraceError(path, 0, message)
        self._program = program
        self._fields = list(_FIELDS)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by close
        try:
            self._perf = self._start()
        except TraceError:
            self._errors.close()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        # "trace:" is for tracepoints alone: samples in the same file may lack some of the fields
        fields = "trace:" + ",".join(self._fields)
        options = ["--header", "--show-lost-events", "--ns", "-F", fields, "-i", self.path]
        try:
            return subprocess.Popen(
                [self._program, "script", *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        except OSError as error:
            raise TraceError(self.path, 0, f"{self._program}: {error.strerror or error}") from error

    def read_into(self, target: memoryview) -> int:
        """Fill the beginning of ``target``: number of bytes, 0 at the end."""
        while True:
            assert self._perf.stdout is not None
            count = self._perf.stdout.readinto(target)  # type: ignore[attr-defined]
            if count or not self._perf.wait():
                return int(count)
            if not self._drop_missing():
                said = self._said().splitlines()
                why = f": {said[-1]}" if said else f", exit code {self._perf.returncode}"
                raise TraceError(self.path, 0, f"perf script cannot read this perf.data file{why}")
            self._perf.stdout.close()
            self._errors.seek(0)
            self._errors.truncate()
            self._perf = self._start()

    def _drop_missing(self) -> bool:
        """Do without the field that perf said tracepoints lack; False if that is not why it failed.

        perf tells before it prints any event.
        """
        missing = _MISSING.search(self._said())
        if missing is None or missing[1] not in self._fields or missing[1] in _NEEDED:
            return False
        self._fields.remove(missing[1])
        return True

    def lost_events(self) -> int:
        """How many events perf said to be lost; call at the end."""
        return sum(int(count) for count in _LOST.findall(self._said()))

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def plain_file(self) -> int | None:
        """None: there is no file of text."""
        return None

    def go_to(self, place: int) -> None:
        """Never called: there is no place to go to."""

    def position(self) -> int:
        """0: nobody knows how far perf is."""
        return 0

    def close(self) -> None:
        """End perf if it is still running."""
        self._perf.kill()
        assert self._perf.stdout is not None
        self._perf.stdout.close()
        self._perf.wait()
        self._errors.close()
