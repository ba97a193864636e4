"""``replay``, whose workers stop at a gate before they read a trace that has one.

A test thus finds a worker with a trace in its hands, for as long as it wants.  Runs as the command itself,
and as what a worker of Dask loads first.
"""

from __future__ import annotations

import os
from typing import Any

from replay.trace import reader

TELLS, WAITS = ".tells", ".waits"
"""The pipes of a gate, named after its trace: a worker tells its number, then waits for an end of file."""

_ungated: Any = getattr(reader.read_trace, "ungated", reader.read_trace)  # Dask runs this file twice


def read_trace(path: Any, **options: Any) -> Any:
    """Stop at the gate of ``path`` if there is one, then read the trace."""
    if os.path.exists(f"{path}{TELLS}"):
        with open(f"{path}{TELLS}", "w") as pipe:
            pipe.write(f"{os.getpid()}\n")
        with open(f"{path}{WAITS}") as pipe:
            pipe.read()
    return _ungated(path, **options)


read_trace.ungated = _ungated  # type: ignore[attr-defined]
reader.read_trace = read_trace

if __name__ == "__main__":
    from replay.__main__ import main

    main()
