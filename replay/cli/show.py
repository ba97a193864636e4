"""What commands share: exit codes, how a result is shown, and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from replay.run import Progress

MATCHED, DIFFERED = 0, 1
"""Exit codes of what was compared; ``replay.ending`` has that of what cannot be used."""


def check_require(require: str | None) -> None:
    """Raises ``UsageError`` for a word that ``--require`` does not take."""
    if require not in (None, "match"):
        from replay.errors import UsageError

        raise UsageError(f"--require {require}: use match")


def code_of_verdict(verdict: str, require: str | None) -> int:
    """The exit code of a run: only what was compared and differs is bad, unless a match is required."""
    is_good = verdict == "match" if require else verdict != "mismatch"
    return MATCHED if is_good else DIFFERED


def show_json(document: Any) -> None:
    """Print a document, and nothing else, on standard output."""
    print(json.dumps(document, indent=1))


def show_line(line: str, quiet: bool) -> None:
    """Print one line, whose names of files a terminal must not obey."""
    if not quiet:
        from replay.printable import printable

        print(printable(line))


def standard_output() -> Console:
    """Standard output, for the functions of ``replay.report``."""
    from replay.report.console import console

    return console(sys.stdout)


@contextmanager
def reading(quiet: bool) -> Iterator[Progress | None]:
    """Announce the first compilation on standard error; show progress there if it is a terminal."""
    if quiet:
        yield None
        return
    from replay.jit import announce_compile
    from replay.report.progress import read_progress

    announce_compile(lambda line: print(f"replay: {line}", file=sys.stderr, flush=True))
    with read_progress(sys.stderr) as progress:
        yield progress
