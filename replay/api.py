"""The functions of the package for Python callers: the commands ``run`` and ``compare``."""

from __future__ import annotations

import os
from collections.abc import Sequence

from replay.policy import Policy
from replay.run import Request, Run, run_policies, run_trace
from replay.trace.trace import Trace


def replay(
    trace: Trace | str | os.PathLike[str],
    policy: Policy | str = "auto",
    *,
    kernel: str | None = None,
    split_at: str | float | None = None,
    expect: str | os.PathLike[str] | None = None,
    max_mmu_pages: int | None = None,
    resched: str | None = None,
    strict: bool = False,
    allow_lost: bool = False,
    rmap_histogram: Sequence[str] = (),
    rmap_columns: str = "auto",
) -> Run:
    """Replay a trace with eager page splitting and compare with what is expected.

    ``trace`` is a trace or the path of one; ``split_at`` may be seconds.  The other arguments, and
    what None means for them, are those of ``replay run``.  The result holds Arrow tables
    (``run.tables()``: one row an attempt, a flush, a window), the ``replay.run/1`` document and the
    comparison.  Raises ``ReplayError``.
    """
    request = Request(
        policy=policy,
        kernel=kernel,
        split_at=None if split_at is None else str(split_at),
        expect=None if expect is None else os.fspath(expect),
        max_mmu_pages=max_mmu_pages,
        resched=resched,
        strict=strict,
        allow_lost=allow_lost,
        rmap_histogram=tuple(rmap_histogram),
        rmap_columns=rmap_columns,
    )
    return run_trace(_trace(trace), request)


def compare(
    trace: Trace | str | os.PathLike[str],
    policies: Sequence[Policy | str],
    *,
    kernel: str | None = None,
    split_at: str | float | None = None,
    max_mmu_pages: int | None = None,
    resched: str | None = None,
) -> list[Run]:
    """Replay one trace with each policy, in their order; the arguments are those of ``replay``.

    Raises ``ReplayError``.
    """
    request = Request(
        kernel=kernel,
        split_at=None if split_at is None else str(split_at),
        max_mmu_pages=max_mmu_pages,
        resched=resched,
    )
    return run_policies(_trace(trace), policies, request)


def _trace(trace: Trace | str | os.PathLike[str]) -> Trace | str:
    return trace if isinstance(trace, Trace) else os.fspath(trace)
