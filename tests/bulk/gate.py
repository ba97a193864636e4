"""A gate before a trace: the worker that comes to it stays there until the test lets it go."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path
from typing import Any

import replay
from tests.bulk.gated import TELLS, WAITS

PROGRAM = Path(__file__).with_name("gated.py")
"""``replay`` with gates; ``ENVIRONMENT`` lets it find the package."""
HANGS_SECONDS = 600
"""No test waits so long unless something hangs."""
_PACKAGES = [str(Path(replay.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(_PACKAGES)}


class Gate:
    """Stands before ``trace`` from now on."""

    def __init__(self, trace: Path) -> None:
        self._tells, self._waits = f"{trace}{TELLS}", f"{trace}{WAITS}"
        os.mkfifo(self._tells)
        os.mkfifo(self._waits)
        self._pipe = os.open(self._tells, os.O_RDWR)  # to write, too: so that opening does not wait

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._pipe)

    def holds(self, run: subprocess.Popen[Any]) -> int:
        """Wait for a worker: its process.  Fails if the command ``run`` ends instead."""
        ended = os.pidfd_open(run.pid)
        try:
            ready, _, _ = select.select([self._pipe, ended], [], [], HANGS_SECONDS)
        finally:
            os.close(ended)
        assert self._pipe in ready, "the command has ended" if ready else "nobody comes"
        return int(os.read(self._pipe, 100))

    def let_go(self) -> None:
        """Let the worker that waits go on; it is held again should it come back."""
        os.close(os.open(self._waits, os.O_WRONLY))
