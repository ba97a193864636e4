"""Entry point of the command ``replay``.

What a command needs takes a while to import: an interrupt during that time ends it as quietly as one later.
"""

from __future__ import annotations

import os

try:
    import signal
    from typing import NoReturn

    from replay.interrupt import INTERRUPTED, end_at_once
except KeyboardInterrupt:
    os._exit(130)


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        signal.signal(signal.SIGINT, end_at_once)
        from replay.ending import run

        run()
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
