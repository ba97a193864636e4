"""The options and arguments of all commands, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# -- of several commands ---------------------------------------------------------------------------

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

# -- of run, compare and review --------------------------------------------------------------------

RequireOption = Annotated[
    str | None,
    typer.Option(
        "--require", metavar="match", help="Exit with 1 for any verdict except match, for use in CI."
    ),
]
ResultsOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write the result tables to DIR.")
]
RmapHistogramOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rmap-histogram",
        metavar="end|SECONDS|WORDS",
        help="Print rmap lengths like KVM's mmu_rmaps_stat: at the end, at a time, or after each marker "
        "line that contains these words; repeatable.",
    ),
]
RmapColumnsOption = Annotated[
    str,
    typer.Option(
        "--rmap-columns",
        metavar="auto|fls|ffs",
        help="How a length selects its column: fls as labelled, ffs as kernels up to 7.1 do, auto as the "
        "recorded kernel does.",
    ),
]
ComparedPoliciesOption = Annotated[
    list[str],
    typer.Option(
        "--policy", metavar="NAME|FILE.toml", help="Policy, also NAME:KNOB=VALUE,...; give two or more."
    ),
]
QuestionsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[QUESTION]...", help="For example A2 or B7. Default: all.")
]

# -- of parse and synth ----------------------------------------------------------------------------

TableOption = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="A name in .parquet, .arrow or .feather.")
]
ScenarioArgument = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario, a TOML file.")]
NewTraceOption = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The trace to write.")]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same trace.")]

# -- of expect and check ---------------------------------------------------------------------------

GoldenOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: TRACE.expected.json.")
]
CheckedPathsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Traces with golden files, or directories that contain them."),
]
UpdateOption = Annotated[
    bool,
    typer.Option("--update", help="Show what differs, then overwrite golden files with the new results."),
]
JunitOption = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Also write the results as JUnit XML.")
]

# -- of bulk and query -----------------------------------------------------------------------------

TracesArgument = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Traces, directories or patterns; - reads a list from stdin."),
]
NewDatasetOption = Annotated[
    str, typer.Option("-o", "--output", metavar="DIR", help="The dataset: a directory or an fsspec URL.")
]
BulkPoliciesOption = Annotated[
    list[str] | None,
    typer.Option("--policy", metavar="auto|NAME|FILE.toml", help="Policy, default auto; repeatable."),
]
BulkExpectOption = Annotated[
    str | None,
    typer.Option(
        "--expect",
        metavar="recorded|none",
        help="What to compare with. Default: golden files beside traces, otherwise recorded outcomes.",
    ),
]
JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, metavar="N", help="Number of processes. Default: one per core."),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="SIZE", help="Limit for all processes, as 4G. Default: 4/5 of free memory."
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="Scheduler of a Dask cluster: tcp://HOST:PORT."),
]
DatasetArgument = Annotated[str, typer.Argument(metavar="DIR", help="A dataset of replay bulk.")]
SqlArgument = Annotated[str, typer.Argument(metavar="SQL", help="Tables: runs, outcomes, windows, flushes.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
AnswerOption = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="Write a Parquet file; its name ends in .parquet."),
]
