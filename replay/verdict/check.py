"""Regression tests with golden files: every trace that has a golden file is replayed and compared."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from replay.errors import InputError, ReplayError
from replay.regular import check_regular
from replay.trace.files import trace_files
from replay.verdict.golden import GOLDEN_SUFFIX, golden_path, has_golden, write_golden

if TYPE_CHECKING:
    from replay.run import Progress
    from replay.verdict.compare import Difference


@dataclass(frozen=True)
class Check:
    """The result for one trace."""

    trace: Path
    status: str
    """``passed``, ``failed``, ``updated``, ``error`` or ``no_golden``."""
    seconds: float = 0.0
    attempts: int | None = None
    policy: str = ""
    lost_events: int = 0
    reasons: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    error: ReplayError | None = None


def find_traces(paths: Iterable[Path]) -> list[Path]:
    """The traces with golden files among ``paths``; directories are walked, links to them are not followed.

    A golden file may be given instead of its trace; a directory that cannot be listed is returned itself.
    Raises ``InputError`` for a path without a golden file.
    """
    traces: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            unlisted: list[OSError] = []
            found = sorted(
                Path(directory, name)
                for directory, _, names in os.walk(path, onerror=unlisted.append)
                for name in names
                if name.endswith(GOLDEN_SUFFIX)
            )
            found += [Path(error.filename) for error in unlisted]
            if not found:
                raise InputError(path, 0, f"no trace with a golden file (*{GOLDEN_SUFFIX}) beside it")
        else:
            found = [path if path.name.endswith(GOLDEN_SUFFIX) else golden_path(path)]
            if not os.path.lexists(found[0]):
                missing = found[0] if path.exists() else path
                raise InputError(missing, 0, "No such file or directory")
        traces |= dict.fromkeys(Path(str(golden).removesuffix(GOLDEN_SUFFIX)) for golden in found)
    return list(traces)


def without_golden(paths: Iterable[Path]) -> list[Path]:
    """Files in the directories among ``paths`` that have the name of a trace but no golden file."""
    found = (Path(name) for path in paths if path.is_dir() for name in trace_files(path))
    return [trace for trace in dict.fromkeys(found) if not has_golden(trace) and not trace.is_dir()]


def check_traces(
    traces: Iterable[Path], strict: bool, update: bool, progress: Progress | None
) -> Iterator[Check]:
    """Run each trace with its golden file; one that cannot be used does not stop the others."""
    for trace in traces:
        try:
            yield check_trace(trace, strict, update, progress)
        except ReplayError as error:
            yield Check(trace, "error", error=error)


def check_trace(
    trace: Path, strict: bool = False, update: bool = False, progress: Progress | None = None
) -> Check:
    """Run one trace with its golden file.  Raises ``ReplayError`` if one of them cannot be used."""
    from replay.run import Request, run_trace

    begun = time.monotonic()
    try:
        check_regular(trace)
    except OSError as error:
        raise InputError(trace, 0, error.strerror or str(error)) from error
    # Lost events are part of the trace: the same trace must still give the same outcomes.
    run = run_trace(str(trace), Request(strict=strict, allow_lost=True), progress)
    comparison = run.comparison
    status = "passed" if comparison.verdict == "match" else "updated" if update else "failed"
    if status == "updated":
        write_golden(golden_path(trace), run.golden, is_named=False)
    return Check(
        trace,
        status,
        time.monotonic() - begun,
        comparison.attempts,
        run.policy.name,
        run.trace.lost_events,
        comparison.reasons,
        comparison.differences,
    )
