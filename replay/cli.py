"""The commands: options in, one call, print, exit code.

Everything heavy is imported inside the commands, so that ``replay --help`` is quick.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from replay.run import Progress, Request

app = typer.Typer(
    name="replay",
    help="Replay KVM MMU tracepoints and simulate eager page splitting of the shadow MMU.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MATCHED, DIFFERED = 0, 1

TraceArgument = Annotated[
    str,
    typer.Argument(
        metavar="TRACE",
        help="Trace text, trace.dat (also .gz .zst .xz), perf.data, an event table, or - for stdin.",
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="auto|NAME|FILE.toml",
        help="Policy, also NAME:KNOB=VALUE,...; auto (default): the golden file's, otherwise the one that "
        "best explains the recorded outcomes, otherwise the one of the kernel's version.",
    ),
]
KernelOption = Annotated[
    str | None,
    typer.Option(
        "--kernel",
        metavar="RELEASE|host",
        help="The recorded kernel: a release as printed by uname -r or a banner, or this machine's (host). "
        "Decides --policy auto if recorded outcomes do not, and knobs that depend on the kernel's version.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KNOB=VALUE", help="Change one knob of the policy; repeatable."),
]
SplitAtOption = Annotated[
    str | None,
    typer.Option(
        "--split-at",
        metavar="auto|recorded|control|end|never|SECONDS",
        help="When dirty logging is enabled. Default auto: when the trace says so, otherwise at its end.",
    ),
]
ReschedOption = Annotated[
    str | None,
    typer.Option(
        "--resched",
        metavar="recorded|never|every=N|seed=S",
        help="When the kernel drops the MMU lock. Default: as recorded.",
    ),
]
MaxPagesOption = Annotated[
    int | None,
    typer.Option("--max-mmu-pages", min=1, metavar="N", help="Limit of shadow pages (n_max_mmu_pages)."),
]
ExpectOption = Annotated[
    str | None,
    typer.Option(
        "--expect",
        metavar="FILE|recorded|none",
        help="What to compare with. Default: the golden file beside the trace, otherwise recorded outcomes.",
    ),
]
NestedOption = Annotated[
    str | None,
    typer.Option(
        "--nested",
        metavar="auto|yes|no",
        help="Whether kvm.tdp_mmu is on, so that merged code splits shadow pages of nested guests. "
        "Default auto: as the trace shows.",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="auto|ftrace|trace-cmd|perf-script|dmesg|trace-dat|perf-data|table",
        help="Format of the trace. Default auto: detected from the content.",
    ),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Treat a malformed line as an error.")]
LostOption = Annotated[bool, typer.Option("--allow-lost", help="Let a trace with lost events match.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]


@app.command()
def run(
    trace: TraceArgument,
    policy: PolicyOption = None,
    kernel: KernelOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    expect: ExpectOption = None,
    require: Annotated[
        str | None,
        typer.Option(
            "--require", metavar="match", help="Exit with 1 for any verdict except match, for use in CI."
        ),
    ] = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    nested: NestedOption = None,
    as_json: JsonOption = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write the result tables to DIR.")
    ] = None,
    rmap_histogram: Annotated[
        list[str] | None,
        typer.Option(
            "--rmap-histogram",
            metavar="end|SECONDS|WORDS",
            help="Print rmap lengths like KVM's mmu_rmaps_stat: at the end, at a time, or after each marker "
            "line that contains these words; repeatable.",
        ),
    ] = None,
    rmap_columns: Annotated[
        str,
        typer.Option(
            "--rmap-columns",
            metavar="auto|fls|ffs",
            help="How a length selects its column: fls as labelled, ffs as kernels up to 7.1 do, auto as the "
            "recorded kernel does.",
        ),
    ] = "auto",
    quiet: QuietOption = False,
    strict: StrictOption = False,
    allow_lost: LostOption = False,
    file_format: FormatOption = None,
) -> None:
    """Replay a trace and compare it with the expected outcomes.

    Simulates eager page splitting whenever dirty logging is enabled, and prints a summary and a verdict.

    Exit code 0: everything that could be compared matched, or nothing could be compared. 1: something did
    not match. 2: the command line or an input cannot be used.
    """
    from replay.errors import UsageError
    from replay.run import run_alternative, run_trace, write_run

    if require not in (None, "match"):
        raise UsageError(f"--require {require}: use match")

    request = replace(
        _request(policy, settings, split_at, resched, max_mmu_pages, expect, strict, allow_lost, file_format),
        rmap_histogram=tuple(rmap_histogram or ()),
        rmap_columns=rmap_columns,
        nested=nested,
        kernel=kernel,
    )
    with _progress(quiet) as progress:
        finished = run_trace(trace, request, progress)
        other = None if as_json or quiet else run_alternative(finished, request)
    if output is not None:
        write_run(output, finished)
    if as_json:
        print(json.dumps(finished.document, indent=1))
    elif not quiet:
        from replay.report.console import console, print_run
        from replay.report.side_by_side import print_alternative

        print_run(console(sys.stdout), finished.document, finished.comparison.differences)
        print_alternative(console(sys.stdout), finished.document, other.document if other else None)
    verdict = finished.comparison.verdict
    is_good = verdict == "match" if require else verdict != "mismatch"
    raise typer.Exit(MATCHED if is_good else DIFFERED)


@app.command()
def compare(
    trace: TraceArgument,
    policies: Annotated[
        list[str],
        typer.Option(
            "--policy", metavar="NAME|FILE.toml", help="Policy, also NAME:KNOB=VALUE,...; give two or more."
        ),
    ],
    kernel: KernelOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    nested: NestedOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    strict: StrictOption = False,
    file_format: FormatOption = None,
) -> None:
    """Replay a trace under several policies, side by side.

    Exit code 0, whatever the results are. 2: the command line or an input cannot be used.
    """
    from replay.run import run_policies

    request = _request(
        None, settings, split_at, resched, max_mmu_pages, "recorded", strict, False, file_format
    )
    request = replace(request, nested=nested, kernel=kernel)
    with _progress(quiet) as progress:
        documents = [run.document for run in run_policies(trace, policies, request, progress)]
    if as_json:
        print(json.dumps({"schema": "replay.compare/1", "runs": documents}, indent=1))
    elif not quiet:
        from replay.report.console import console
        from replay.report.side_by_side import print_side_by_side

        print_side_by_side(console(sys.stdout), documents)


@app.command()
def review(
    trace: TraceArgument,
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="[QUESTION]...", help="For example A2 or B7. Default: all.")
    ] = None,
    policy: PolicyOption = None,
    kernel: KernelOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    nested: NestedOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    strict: StrictOption = False,
    file_format: FormatOption = None,
) -> None:
    """Answer questions of the patch review with numbers from a trace.

    --policy is the policy under review, by default v2. If a question compares policies, the others are run
    as well, with the same --set.

    Exit code 0, whatever the answers are. 2: the command line or an input cannot be used.
    """
    from replay.review.questions import review_trace

    request = _request(
        policy, settings, split_at, resched, max_mmu_pages, "recorded", strict, False, file_format
    )
    request = replace(request, nested=nested, kernel=kernel)
    with _progress(quiet) as progress:
        document = review_trace(trace, questions or (), request, progress)
    if as_json:
        print(json.dumps(document, indent=1))
    elif not quiet:
        from replay.report.console import console
        from replay.report.review import print_review

        print_review(console(sys.stdout), document)


@app.command()
def parse(
    trace: TraceArgument,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="A name in .parquet, .arrow or .feather.")
    ],
    quiet: QuietOption = False,
    strict: StrictOption = False,
    file_format: FormatOption = None,
) -> None:
    """Write the events of a trace as an Arrow table."""
    from replay.errors import UsageError

    if output.suffix not in (".parquet", ".arrow", ".feather"):
        raise UsageError(f"{output}: the file name must end in .parquet, .arrow or .feather")
    from replay.trace.reader import read_trace, write_table

    with _progress(quiet) as progress:
        events = read_trace(trace, file_format=file_format, strict=strict, progress=progress)
    write_table(events, output)
    if not quiet:
        _print(
            f"{output}: {events.events} events of {events.lines} lines, "
            f"{events.malformed_lines} malformed, {events.ignored_lines} ignored"
        )


@app.command()
def info(
    trace: TraceArgument,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    file_format: FormatOption = None,
) -> None:
    """Show what a trace contains, and what can be replayed from it."""
    from replay.info import info_document
    from replay.trace.reader import read_trace

    with _progress(quiet) as progress:
        document = info_document(read_trace(trace, file_format=file_format, progress=progress))
    if as_json:
        print(json.dumps(document, indent=1))
    elif not quiet:
        from replay.report.console import console
        from replay.report.info import print_info

        print_info(console(sys.stdout), document)


@app.command()
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
    """Replay a trace and write the result as its golden file."""
    from replay.errors import UsageError
    from replay.run import run_trace
    from replay.verdict.golden import golden_path, write_golden

    if trace == "-" and output is None:
        raise UsageError("standard input has no golden file beside it: use -o FILE")
    request = _request(
        policy, settings, split_at, resched, max_mmu_pages, "recorded", strict, False, file_format
    )
    with _progress(quiet) as progress:
        golden = run_trace(trace, request, progress).golden
    path = output or golden_path(trace)
    write_golden(path, golden, is_named=output is not None)
    if not quiet:
        _print(f"{path}: {len(golden.outcomes)} attempts, policy {golden.policy}")


@app.command()
def check(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Traces with golden files, or directories that contain them."),
    ],
    update: Annotated[
        bool,
        typer.Option("--update", help="Show what differs, then overwrite golden files with the new results."),
    ] = False,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also write the results as JUnit XML.")
    ] = None,
    quiet: QuietOption = False,
    strict: StrictOption = False,
) -> None:
    """Replay traces that have golden files and compare the results."""
    from replay.output import write_text
    from replay.report.check import junit_text, print_check, print_tally
    from replay.report.console import console
    from replay.verdict.check import Check, check_traces, find_traces, without_golden

    out = None if quiet else console(sys.stdout)
    traces = find_traces(paths)
    checks = []
    with _progress(quiet) as progress:
        for check in check_traces(traces, strict, update, progress):
            checks.append(check)
            if out is not None:
                print_check(out, check)
    missing = [Check(trace, "no_golden") for trace in without_golden(paths)]
    checks += missing
    if out is not None:
        for check in missing:
            print_check(out, check)
        print_tally(out, checks)
    if junit is not None:
        write_text(junit, junit_text(checks))
    for check in checks:
        if check.error is not None:
            raise check.error
    raise typer.Exit(DIFFERED if any(check.status == "failed" for check in checks) else MATCHED)


@app.command()
def synth(
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario, a TOML file.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The trace to write.")],
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same trace.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """Write a synthetic trace."""
    from replay.synth import write_trace

    with _progress(quiet):
        write_trace(scenario, output, seed)
    if not quiet and output.is_file():
        _print(f"{output}: {output.stat().st_size} bytes")


@app.command()
def warmup(quiet: QuietOption = False) -> None:
    """Compile all kernels and store them, so that no later command has to compile.

    Exit code 0, even if there was nothing to do. 2: they cannot be stored.
    """
    from replay.warmup import warm_up

    done = warm_up()
    if not quiet:
        for word, names in (("compiled", done.compiled), ("found", done.found)):
            print(f"{word}: {', '.join(names) or 'none'}")
        _print(f"stored in: {done.directory}")


@app.command()
def policies(
    as_json: JsonOption = False,
) -> None:
    """List the policies and their knobs."""
    from replay.policy import DESCRIPTIONS, PRESETS
    from replay.report.console import console, print_policies

    if as_json:
        listed = [
            {"name": name, "models": DESCRIPTIONS[name], "knobs": policy.knobs()}
            for name, policy in PRESETS.items()
        ]
        print(json.dumps({"schema": "replay.policies/1", "policies": listed}, indent=1))
    else:
        print_policies(console(sys.stdout), PRESETS.values(), DESCRIPTIONS)


def _print(line: str) -> None:
    from replay.printable import printable

    print(printable(line))


def _request(
    policy: str | None,
    settings: list[str] | None,
    split_at: str | None,
    resched: str | None,
    max_mmu_pages: int | None,
    expect: str | None,
    strict: bool,
    allow_lost: bool,
    file_format: str | None,
) -> Request:
    """The request of the options that most commands share."""
    from replay.run import Request

    return Request(
        policy=policy,
        settings=tuple(settings or ()),
        split_at=split_at,
        resched=resched,
        max_mmu_pages=max_mmu_pages,
        expect=expect,
        strict=strict,
        allow_lost=allow_lost,
        file_format=file_format,
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    """Announce the first compilation on standard error; show progress there if it is a terminal."""
    if quiet:
        yield None
        return
    from replay.jit import announce_compile
    from replay.report.progress import read_progress

    announce_compile(lambda line: print(f"replay: {line}", file=sys.stderr, flush=True))
    with read_progress(sys.stderr) as progress:
        yield progress
