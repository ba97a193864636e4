"""The commands about many traces: ``bulk`` and ``query``."""

from __future__ import annotations

import sys

import typer

from replay.cli.options import (
    AnswerOption,
    BulkExpectOption,
    BulkPoliciesOption,
    CsvOption,
    DatasetArgument,
    FormatOption,
    JobsOption,
    JsonOption,
    KernelOption,
    LostOption,
    MaxPagesOption,
    MemoryOption,
    NestedOption,
    NewDatasetOption,
    QuietOption,
    ReschedOption,
    SchedulerOption,
    SetOption,
    SplitAtOption,
    SqlArgument,
    StrictOption,
    TracesArgument,
)
from replay.cli.show import DIFFERED, MATCHED, show_json, standard_output

SHOWN_ROWS = 100


def bulk(
    paths: TracesArgument,
    output: NewDatasetOption,
    policies: BulkPoliciesOption = None,
    kernel: KernelOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    expect: BulkExpectOption = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    nested: NestedOption = None,
    jobs: JobsOption = None,
    memory: MemoryOption = None,
    scheduler: SchedulerOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    strict: StrictOption = False,
    allow_lost: LostOption = False,
    file_format: FormatOption = None,
) -> None:
    """Replay many traces into one Parquet dataset.

    Traces that are already in the dataset are not replayed again: after an interruption, the same command
    resumes where it stopped.

    Exit code 0: nothing mismatched or failed. 1: something did. 2: nothing could be done.
    """
    from replay.bulk.run import Where, run_bulk
    from replay.report.bulk import bulk_progress, print_bulk
    from replay.run import Request

    where = Where.parse(scheduler, jobs, memory)
    request = Request(
        kernel=kernel,
        settings=tuple(settings or ()),
        split_at=split_at,
        resched=resched,
        max_mmu_pages=max_mmu_pages,
        nested=nested,
        expect=expect,
        strict=strict,
        allow_lost=allow_lost,
        file_format=file_format,
    )
    with bulk_progress(sys.stderr, quiet) as progress:
        summary = run_bulk(paths, output, policies or [], request, where, progress)
    if as_json:
        show_json(summary.document)
    elif not quiet:
        print_bulk(standard_output(), summary.document)
    summary.raise_if_all_failed()
    raise typer.Exit(DIFFERED if summary.failed or summary.mismatched else MATCHED)


def query(
    directory: DatasetArgument,
    sql: SqlArgument,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    output: AnswerOption = None,
) -> None:
    """Query a dataset in SQL (the dialect of polars).

    Exit code 0: answered. 2: there is no dataset, or the query cannot be answered.
    """
    from replay.bulk.query import json_rows, write_csv, write_parquet
    from replay.bulk.query import query as ask
    from replay.output import check_ending

    if output is not None:
        check_ending(output, ".parquet")
    answer = ask(directory, sql)
    if output is not None:
        write_parquet(answer, output)
    if as_json:
        show_json(json_rows(answer))
    elif as_csv:
        write_csv(answer, sys.stdout)
    elif output is None:
        from replay.report.bulk import print_rows

        print_rows(standard_output(), answer.columns, answer.rows(), SHOWN_ROWS)
