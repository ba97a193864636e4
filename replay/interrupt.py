"""What an interrupt does where there is nothing to remove: before a command begins, and after it."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT


def end_at_once(number: int, frame: object) -> NoReturn:
    """A signal handler: end the process with the exit code of the signal, without a word."""
    os._exit(128 + number)
