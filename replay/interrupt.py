"""The end of the process where there is nothing to be removed."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT


def end_at_once(number: int, frame: object) -> NoReturn:
    """A handler for when there is nothing to be removed yet, or any more."""
    os._exit(128 + number)
