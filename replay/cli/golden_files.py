"""The commands about golden files: ``expect`` and ``check``."""

from __future__ import annotations

import typer

from replay.cli.options import (
    CheckedPathsArgument,
    FormatOption,
    GoldenOption,
    JunitOption,
    MaxPagesOption,
    PolicyOption,
    QuietOption,
    ReschedOption,
    SetOption,
    SplitAtOption,
    StrictOption,
    TraceArgument,
    UpdateOption,
)
from replay.cli.show import DIFFERED, MATCHED, reading, show_line, standard_output


def expect(
    trace: TraceArgument,
    output: GoldenOption = None,
    policy: PolicyOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    quiet: QuietOption = False,
    strict: StrictOption = False,
    file_format: FormatOption = None,
) -> None:
    """Replay a trace and write the result as its golden file."""
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
    paths: CheckedPathsArgument,
    update: UpdateOption = False,
    junit: JunitOption = None,
    quiet: QuietOption = False,
    strict: StrictOption = False,
) -> None:
    """Replay traces that have golden files and compare the results."""
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
