"""Replay KVM MMU tracepoints and simulate eager page splitting of the shadow MMU.

>>> import replay
>>> trace = replay.read_trace("traces/recorded/v2/C3-mixed4k.txt.zst")
>>> run = replay.replay(trace)
>>> run.comparison.verdict, run.document["totals"]["shadow_pages_leaked"]
('match', 193)
>>> [run.policy.name for run in replay.compare(trace, ["v2", "v2-alias"])]
['v2', 'v2-alias']

Whatever a user can cause is raised as ``ReplayError``.  Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.api import compare, replay
    from replay.errors import ReplayError
    from replay.policy import Policy
    from replay.run import Run
    from replay.trace.reader import read_trace
    from replay.trace.trace import Trace

__all__ = ["Policy", "ReplayError", "Run", "Trace", "compare", "read_trace", "replay"]

_HOMES = {
    "Policy": "replay.policy",
    "ReplayError": "replay.errors",
    "Run": "replay.run",
    "Trace": "replay.trace.trace",
    "compare": "replay.api",
    "read_trace": "replay.trace.reader",
    "replay": "replay.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
