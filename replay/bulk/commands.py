"""The commands ``bulk`` and ``query``, in addition to those of ``replay.cli``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from replay.cli import (
    DIFFERED,
    MATCHED,
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
    _request,
    app,
)

__all__ = ["app"]
SHOWN_ROWS = 100


@app.command()
def bulk(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Traces, directories or patterns; - reads a list from stdin."),
    ],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="DIR", help="The dataset: a directory or an fsspec URL.")
    ],
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="auto|NAME|FILE.toml", help="Policy, default auto; repeatable."),
    ] = None,
    kernel: KernelOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    expect: Annotated[
        str | None,
        typer.Option(
            "--expect",
            metavar="recorded|none",
            help="What to compare with. Default: golden files beside traces, otherwise recorded outcomes.",
        ),
    ] = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    nested: NestedOption = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, metavar="N", help="Number of processes. Default: one per core."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", metavar="SIZE", help="Limit for all processes, as 4G. Default: 4/5 of free memory."
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", metavar="ADDRESS", help="Scheduler of a Dask cluster: tcp://HOST:PORT."),
    ] = None,
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
    from replay.bulk.memory import parse_size
    from replay.bulk.run import Where, run_bulk
    from replay.errors import UsageError
    from replay.report.bulk import bulk_progress

    if scheduler is not None and (jobs is not None or memory is not None):
        raise UsageError("--jobs and --memory are for local processes: a cluster has its own limits")
    request = _request(
        None, settings, split_at, resched, max_mmu_pages, expect, strict, allow_lost, file_format
    )
    request = replace(request, nested=nested, kernel=kernel)
    where = Where(scheduler, jobs, None if memory is None else parse_size(memory))
    with bulk_progress(sys.stderr, quiet) as progress:
        summary = run_bulk(paths, output, policies or [], request, where, progress)
    if as_json:
        print(json.dumps(summary.document, indent=1))
    elif not quiet:
        from replay.report.bulk import print_bulk
        from replay.report.console import console

        print_bulk(console(sys.stdout), summary)
    if summary.failed == len(summary.rows):
        first = summary.worst[0]
        raise UsageError(f"no trace could be replayed: {first['path']}: {first['error_message']}")
    raise typer.Exit(DIFFERED if summary.failed or summary.mismatched else MATCHED)


@app.command()
def query(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A dataset of replay bulk.")],
    sql: Annotated[str, typer.Argument(metavar="SQL", help="Tables: runs, outcomes, windows, flushes.")],
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write a Parquet file; its name ends in .parquet."
        ),
    ] = None,
) -> None:
    """Query a dataset in SQL (the dialect of polars).

    Exit code 0: answered. 2: there is no dataset, or the query cannot be answered.
    """
    from replay.bulk.query import json_rows, write_csv
    from replay.bulk.query import query as ask
    from replay.errors import UsageError

    if output is not None and output.suffix != ".parquet":
        raise UsageError(f"{output}: the file name must end in .parquet")
    answer = ask(directory, sql)
    if output is not None:
        from replay.output import replacing

        with replacing(output) as temporary:
            answer.write_parquet(temporary)
    if as_json:
        print(json.dumps(json_rows(answer), indent=1))
    elif as_csv:
        write_csv(answer, sys.stdout)
    elif output is None:
        from replay.report.bulk import print_rows
        from replay.report.console import console

        print_rows(console(sys.stdout), answer.columns, answer.rows(), SHOWN_ROWS)
