"""What a worker needs before its first trace; imported once by the process from which they are forked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import replay.mmu.engine
import replay.trace.reader
import replay.verdict.compare
import replay.verdict.outcome  # noqa: F401
from replay.bulk.work import content_of
from replay.jit import announce_compile
from replay.run import Request, run_trace

_SLOT = "tracing_mark_write: replay: memslot id=0 base_gfn=0 npages=512 flags={}"


def warm_up(say: Callable[[str], None] | None = None) -> None:
    """Compile the kernels, or load them, by replaying a trace of two lines."""
    if say is not None:
        announce_compile(say)
    with tempfile.TemporaryDirectory(prefix="replay-") as directory:
        trace = Path(directory, "trace")
        lines = (f" vmm-1 [000] ..... 1.{n:06d}: {_SLOT.format(n)}\n" for n in range(2))
        trace.write_text("# tracer: nop\n" + "".join(lines))
        content_of(str(trace), Request())
        run_trace(str(trace), Request())
