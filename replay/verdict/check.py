"""Golden-file regression: every trace that has a golden file beside it is run and compared."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from replay.errors import InputError, ReplayError
from replay.verdict.golden import GOLDEN_SUFFIX, golden_path, write_golden

if TYPE_CHECKING:
    from rich.console import Console

    from replay.run import Progress


def find_traces(paths: Iterable[Path]) -> list[Path]:
    """The traces with golden files among ``paths``; directories are walked, links to them are not followed.

    A golden file may stand for its trace.  Raises ``InputError`` for a path that has none.
    """
    traces: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(
                Path(directory, name)
                for directory, _, names in os.walk(path)
                for name in names
                if name.endswith(GOLDEN_SUFFIX)
            )
            if not found:
                raise InputError(path, 0, f"no trace with a golden file (*{GOLDEN_SUFFIX}) beside it")
        else:
            found = [path if path.name.endswith(GOLDEN_SUFFIX) else golden_path(path)]
            if not found[0].exists():
                missing = found[0] if path.exists() else path
                raise InputError(missing, 0, "No such file or directory")
        traces |= dict.fromkeys(Path(str(golden).removesuffix(GOLDEN_SUFFIX)) for golden in found)
    return list(traces)


def check_traces(
    traces: list[Path], strict: bool, update: bool, out: Console | None, progress: Progress | None
) -> bool:
    """Run each trace with its golden file; true if all are as expected, or were rewritten.

    Prints one line a trace to ``out``, and under it what differs.  A trace or golden file that
    cannot be used does not stop the others; the first such error is raised at the end.
    """
    errors: list[ReplayError] = []
    failed = 0
    for trace in traces:
        try:
            failed += not _check(trace, strict, update, out, progress)
        except ReplayError as error:
            errors.append(error)
            _say(out, f"ERROR {error}")
    passed = len(traces) - failed - len(errors)
    _say(out, f"{passed} passed, {failed} failed" + (f", {len(errors)} errors" if errors else ""))
    if errors:
        raise errors[0]
    return failed == 0


def _check(trace: Path, strict: bool, update: bool, out: Console | None, progress: Progress | None) -> bool:
    from replay.report.console import print_reasons
    from replay.run import Request, run_trace

    # Lost events are part of the trace: the same trace must give the same outcomes all the same.
    run = run_trace(str(trace), Request(strict=strict, allow_lost=True), progress)
    comparison = run.comparison
    if comparison.verdict == "match":
        lost = f" ({run.trace.lost_events} events lost)" if run.trace.lost_events else ""
        _say(out, f"PASS {trace}: {comparison.attempts} attempts, policy {run.policy.name}{lost}")
        return True
    _say(out, f"{'UPDATE' if update else 'FAIL'} {trace}: policy {run.policy.name}")
    if out is not None:
        print_reasons(out, comparison.reasons, comparison.differences)
    if update:
        write_golden(golden_path(trace), run.golden)
        return True
    _say(out, f"  to accept: replay check --update {trace}")
    return False


def _say(out: Console | None, text: str) -> None:
    from replay.report.console import print_line

    if out is not None:
        print_line(out, text)
