"""Golden-file regression: every trace that has a golden file beside it is run and compared.

The commands ``expect`` and ``check``, and the plugin of pytest, are built on this.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from replay.errors import InputError, ReplayError, UsageError
from replay.regular import check_regular
from replay.run import Progress, Request, run_trace
from replay.trace.files import trace_files
from replay.verdict.check import Check
from replay.verdict.golden import GOLDEN_SUFFIX, Golden, golden_path, has_golden, write_golden


def write_expected(
    trace: str, output: Path | None, request: Request, progress: Progress | None = None
) -> tuple[Path, Golden]:
    """Run a trace and write its golden file to ``output``, or else beside it.  Raises ``ReplayError``."""
    if trace == "-" and output is None:
        raise UsageError("standard input has no golden file beside it: use -o FILE")
    golden = run_trace(trace, request, progress).golden
    path = output or golden_path(trace)
    write_golden(path, golden, is_named=output is not None)
    return path, golden


def find_traces(paths: Iterable[Path]) -> list[Path]:
    """The traces with golden files among ``paths``; directories are walked, links to them are not followed.

    A golden file may stand for its trace, a directory that cannot be listed stands for what is in it.
    Raises ``InputError`` for a path that has none.
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
    """What is named as a trace in the directories among ``paths`` and has no golden file beside it."""
    found = (Path(name) for path in paths if path.is_dir() for name in trace_files(path))
    return [trace for trace in dict.fromkeys(found) if not has_golden(trace) and not trace.is_dir()]


def unchecked(paths: Iterable[Path]) -> Iterator[Check]:
    """What a check says of the traces ``without_golden``."""
    return (Check(trace, "no_golden") for trace in without_golden(paths))


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
    """Run one trace with its golden file.  Raises ``ReplayError`` where one of them cannot be used."""
    begun = time.monotonic()
    try:
        check_regular(trace)
    except OSError as error:
        raise InputError(trace, 0, error.strerror or str(error)) from error
    # Lost events are part of the trace: the same trace must give the same outcomes all the same.
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


def raise_first_error(checks: Iterable[Check]) -> None:
    """Raises the error of the first of ``checks`` that has one."""
    for check in checks:
        if check.error is not None:
            raise check.error


def any_failed(checks: Iterable[Check]) -> bool:
    """Whether a trace is not as its golden file expects."""
    return any(check.status == "failed" for check in checks)
