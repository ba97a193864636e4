"""The commands about golden files: ``expect`` and ``check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replay.cli.options import (
    FormatOption,
    MaxPagesOption,
    PolicyOption,
    QuietOption,
    ReschedOption,
    SetOption,
    SplitAtOption,
    StrictOption,
    TraceArgument,
)
from replay.cli.show import DIFFERED, MATCHED, reading, show_line, standard_output


def expect(
    trace: TraceArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: TRACE.expected.json.")
    ] = None,
    policy: PolicyOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    quiet: QuietOption = False,
    strict: StrictOption = False,
    file_format: FormatOption = None,
) -> None:
    """Write the golden file of a trace from a run."""
    from replay.check import write_expected
    from replay.run import Request

    request = Request(
        policy=policy,
        settings=tuple(settings or ()),
        split_at=split_at,
        resched=resched,
        max_mmu_pages=max_mmu_pages,
        expect="recorded",
        strict=strict,
        file_format=file_format,
    )
    with reading(quiet) as progress:
        path, golden = write_expected(trace, output, request, progress)
    show_line(f"{path}: {len(golden.outcomes)} attempts, policy {golden.policy}", quiet)


def check(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Traces with golden files, or directories of them."),
    ],
    update: Annotated[
        bool, typer.Option("--update", help="Show what differs, then rewrite the golden files.")
    ] = False,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write the results as JUnit XML, too.")
    ] = None,
    quiet: QuietOption = False,
    strict: StrictOption = False,
) -> None:
    """Run traces with golden files and compare."""
    from replay.check import any_failed, check_traces, find_traces, raise_first_error, unchecked
    from replay.output import write_text
    from replay.report.check import junit_text, print_each, print_tally

    out = None if quiet else standard_output()
    traces = find_traces(paths)
    with reading(quiet) as progress:
        checks = print_each(out, check_traces(traces, strict, update, progress))
    checks += print_each(out, unchecked(paths))
    print_tally(out, checks)
    if junit is not None:
        write_text(junit, junit_text(checks))
    raise_first_error(checks)
    raise typer.Exit(DIFFERED if any_failed(checks) else MATCHED)
