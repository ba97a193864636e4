"""The exceptions that a user can cause.  The CLI turns each into one line and exit code 2.

    ReplayError
    ├── UsageError        the call cannot be used: an option, a policy, a scenario
    ├── InputError        a file cannot be read, or is not what it should be
    │   ├── TraceError    a trace, with the line where it stops making sense
    │   │   └── MalformedLine   a line that cannot be parsed (``--strict`` only)
    │   └── GoldenError   a golden file
    └── OutputError       a result cannot be written

Everything else that is raised is a defect of this program and may crash loudly.
"""

from __future__ import annotations

import os


class ReplayError(Exception):
    """Root of all errors that a user can cause; ``str()`` is the one line that the CLI prints."""


class UsageError(ReplayError):
    """The call itself cannot be used: an unknown policy, a knob's value, a scenario."""


class InputError(ReplayError):
    """An input file cannot be read, or is not what it should be.

    ``line`` is 1-based; 0 where the error has no line.
    """

    def __init__(self, path: str | os.PathLike[str], line: int, message: str) -> None:
        self.path = os.fspath(path)
        self.line = line
        self.message = message
        super().__init__(path, line, message)

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.message}"


class TraceError(InputError):
    """A trace that cannot be used: missing, unreadable, not a trace, a truncated archive."""


class MalformedLine(TraceError):
    """An event line that cannot be parsed; raised under ``--strict`` only."""


class GoldenError(InputError):
    """A golden file that cannot be used: not JSON, or of another schema."""


class OutputError(ReplayError):
    """A result cannot be written: no such directory, no permission, a full disk."""

    def __init__(self, path: str | os.PathLike[str], message: str) -> None:
        self.path = os.fspath(path)
        self.message = message
        super().__init__(path, message)

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"
