"""Progress of a long read, on a terminal only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

REDRAW_SECONDS = 0.1
ERASE_LINE = "\r\x1b[K"


@contextmanager
def read_progress(stream: IO[str]) -> Iterator[Callable[[int, int | None], None] | None]:
    """A function to call with bytes done and bytes in all (None if unknown).

    It redraws one line, which is erased at the end of the block.  None where ``stream`` is no
    terminal.
    """
    if not stream.isatty():
        yield None
        return
    drawn = 0.0

    def show(done: int, total: int | None) -> None:
        nonlocal drawn
        if time.monotonic() - drawn >= REDRAW_SECONDS:
            drawn = time.monotonic()
            of_all = f" of {total / 1e6:,.0f}" if total else ""
            stream.write(f"{ERASE_LINE}reading {done / 1e6:,.0f}{of_all} MB")
            stream.flush()

    try:
        yield show
    finally:
        if drawn:
            stream.write(ERASE_LINE)
            stream.flush()
