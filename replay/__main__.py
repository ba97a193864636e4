"""Entry of the command ``replay``.

Importing what a command needs takes long: an interrupt ends it as quietly then as it does later.
"""

from __future__ import annotations

import os

try:
    import signal
    from typing import NoReturn
except KeyboardInterrupt:
    os._exit(130)

INTERRUPTED = 128 + signal.SIGINT


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        signal.signal(signal.SIGINT, end_at_once)
        from replay.ending import run

        run()
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def end_at_once(number: int, frame: object) -> NoReturn:
    """A handler for when there is nothing to be removed yet, or any more."""
    os._exit(128 + number)


if __name__ == "__main__":
    main()
