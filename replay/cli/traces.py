"""The commands that make and describe traces: ``parse``, ``info`` and ``synth``."""

from __future__ import annotations

from replay.cli.options import (
    FormatOption,
    JsonOption,
    NewTraceOption,
    QuietOption,
    ScenarioArgument,
    SeedOption,
    StrictOption,
    TableOption,
    TraceArgument,
)
from replay.cli.show import reading, show_json, show_line, standard_output


def parse(
    trace: TraceArgument,
    output: TableOption,
    quiet: QuietOption = False,
    strict: StrictOption = False,
    file_format: FormatOption = None,
) -> None:
    """Write the events of a trace as an Arrow table."""
    from replay.output import check_ending

    check_ending(output, ".parquet", ".arrow", ".feather")
    from replay.trace.reader import read_trace, write_table

    with reading(quiet) as progress:
        events = read_trace(trace, file_format=file_format, strict=strict, progress=progress)
    write_table(events, output)
    show_line(
        f"{output}: {events.events} events of {events.lines} lines, "
        f"{events.malformed_lines} malformed, {events.ignored_lines} ignored",
        quiet,
    )


def info(
    trace: TraceArgument,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    file_format: FormatOption = None,
) -> None:
    """Show what a trace contains, and what can be replayed from it."""
    from replay.info import info_document
    from replay.trace.reader import read_trace

    with reading(quiet) as progress:
        document = info_document(read_trace(trace, file_format=file_format, progress=progress))
    if as_json:
        show_json(document)
    elif not quiet:
        from replay.report.info import print_info

        print_info(standard_output(), document)


def synth(
    scenario: ScenarioArgument,
    output: NewTraceOption,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Write a synthetic trace."""
    from replay.synth import write_trace

    with reading(quiet):
        write_trace(scenario, output, seed)
    if output.is_file():
        show_line(f"{output}: {output.stat().st_size} bytes", quiet)
