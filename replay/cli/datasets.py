"""The commands about many traces: ``bulk`` and ``query``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from replay.cli.options import (
    FormatOption,
    JsonOption,
    KernelOption,
    LostOption,
    MaxPagesOption,
    NestedOption,
    QuietOption,
    ReschedOption,
    SetOption,
    SplitAtOption,
    StrictOption,
)
from replay.cli.show import DIFFERED, MATCHED, show_json, standard_output

SHOWN_ROWS = 100


def bulk(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Traces, directories, patterns; - for a list on stdin."),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="DIR", help="The dataset: a directory or an fsspec URL.")
    ],
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy", metavar="auto|NAME|FILE.toml", help="Policy, default auto; repeatable: read once."
        ),
    ] = None,
    kernel: KernelOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect",
            metavar="recorded|none",
            help="What to compare with. Default: golden files beside traces, else the recorded outcomes.",
        ),
    ] = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    nested: NestedOption = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, metavar="N", help="Processes. Default: all cores.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="For all processes: 4G. Default: 4/5 of what is free."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster: tcp://HOST:PORT."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    strict: StrictOption = False,
    allow_lost: LostOption = False,
    file_format: FormatOption = None,
) -> None:
    """Replay many traces into one Parquet dataset.

    What the dataset has already is not replayed again: after an interruption, the same command goes on.

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
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A dataset of replay bulk.")],
    sql: Annotated[str, typer.Argument(metavar="SQL", help="Tables: runs, outcomes, windows, flushes.")],
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write Parquet; ends in .parquet.")
    ] = None,
) -> None:
    """Ask a dataset in SQL (that of polars).

    Exit code 0. 2: no dataset, or the query cannot be answered.
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
