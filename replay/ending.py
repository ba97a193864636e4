"""Runs the command line: however a command ends, it gives at most one line and an exit code."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import typer

from replay.cli import app
from replay.errors import ReplayError
from replay.interrupt import INTERRUPTED, end_at_once
from replay.printable import printable

UNUSABLE = 2
TERMINATED = 128 + signal.SIGTERM
BROKEN_PIPE = 128 + signal.SIGPIPE

OBJECTS_BETWEEN_COLLECTIONS = 200_000
"""Importing makes objects by the hundred thousand that stay: Python's 700 take a sixth of a short run."""

# typer brings its own copy of click, or the real one, depending on its version
CommandError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def run() -> NoReturn:
    """Run the command line and exit."""
    code = _run()
    signal.signal(signal.SIGINT, end_at_once)
    _leave(code)


def _run() -> Any:
    """The exit code."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # what cannot be encoded, for example half a character in a file name, is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="replay", standalone_mode=False) or 0
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as end:
        # typer makes exit code 1 of a closed pipe, which here means a mismatch
        code = BROKEN_PIPE if isinstance(end.__context__, BrokenPipeError) else end.code
    except BrokenPipeError:
        code = BROKEN_PIPE
    except ReplayError as error:
        code = _complain(str(error))
    except CommandError as error:
        code = _complain(f"{error.format_message()} (replay --help)")
    except MemoryError:
        code = _complain("not enough memory")
    except OSError as error:
        code = _complain(f"{error.filename or 'standard output'}: {error.strerror or error}")
    except RecursionError:
        code = _complain("nested too deep")
    return code


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End by an exception, so that half-written files are removed, and without a word."""
    # what an interrupted compiler left half-made complains when it is collected
    sys.unraisablehook = lambda unraisable: None
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(TERMINATED)


def _complain(message: str) -> int:
    with suppress(OSError):  # a full disk
        print(f"replay: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return UNUSABLE


def _leave(code: int) -> NoReturn:
    if code in (BROKEN_PIPE, UNUSABLE):
        # the rest of standard output cannot be written: keep Python from trying again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
