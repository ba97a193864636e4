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
        help="Trace text or trace.dat (also .gz .zst .xz), perf.data, an event table, or - for stdin.",
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="auto|NAME|FILE.toml",
        help="Policy, also NAME:KNOB=VALUE,...; auto: the golden file's, else that of the recorded "
        "outcomes, else that of the kernel.",
    ),
]
KernelOption = Annotated[
    str | None,
    typer.Option(
        "--kernel",
        metavar="RELEASE|host",
        help="Which kernel it is: as uname -r or a banner names it, or this machine's. Decides --policy auto "
        "where recorded outcomes do not, and the knobs that go with a kernel's age.",
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
        help="When dirty logging is turned on. Default auto: as the trace says, else at its end.",
    ),
]
ReschedOption = Annotated[
    str | None,
    typer.Option(
        "--resched",
        metavar="recorded|never|every=N|seed=S",
        help="Lock drops of the environment. Default recorded.",
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
        help="What to compare with. Default: the golden file beside the trace, else the recorded outcomes.",
    ),
]
NestedOption = Annotated[
    str | None,
    typer.Option(
        "--nested",
        metavar="auto|yes|no",
        help="Whether kvm.tdp_mmu is on, so that merged code splits the pages of nested guests. "
        "Default auto: as the trace shows.",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="auto|ftrace|trace-cmd|perf-script|dmesg|trace-dat|perf-data|table",
        help="What the trace is. Default auto: its content tells.",
    ),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Malformed lines are an error.")]
LostOption = Annotated[bool, typer.Option("--allow-lost", help="A trace with lost events may match.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]

# -- of run, compare and review --------------------------------------------------------------------

RequireOption = Annotated[
    str | None,
    typer.Option(
        "--require", metavar="match", help="Exit with 1 for every verdict but match, for use in CI."
    ),
]
ResultsOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write the result tables there.")
]
RmapHistogramOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rmap-histogram",
        metavar="end|SECONDS|WORDS",
        help="Print rmap lengths as KVM's mmu_rmaps_stat: at the end, at a time, or behind the marker "
        "lines that hold these words; repeatable.",
    ),
]
RmapColumnsOption = Annotated[
    str,
    typer.Option(
        "--rmap-columns",
        metavar="auto|fls|ffs",
        help="Column of a length: fls as labelled, ffs as kernels up to 7.1, auto as the one that recorded.",
    ),
]
ComparedPoliciesOption = Annotated[
    list[str],
    typer.Option(
        "--policy", metavar="NAME|FILE.toml", help="Policy, also NAME:KNOB=VALUE,...; give two or more."
    ),
]
QuestionsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[QUESTION]...", help="A2, B7 ...; all if none is given.")
]

# -- of parse and synth ----------------------------------------------------------------------------

TableOption = Annotated[
    Path, typer.Option("-o", "--output", metavar="FILE", help="Ends in .parquet, .arrow or .feather.")
]
ScenarioArgument = Annotated[Path, typer.Argument(metavar="SCENARIO", help="A scenario, TOML.")]
NewTraceOption = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The trace to write.")]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same trace.")]

# -- of expect and check ---------------------------------------------------------------------------

GoldenOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: TRACE.expected.json.")
]
CheckedPathsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Traces with golden files, or directories of them."),
]
UpdateOption = Annotated[
    bool, typer.Option("--update", help="Show what differs, then rewrite the golden files.")
]
JunitOption = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Write the results as JUnit XML, too.")
]

# -- of bulk and query -----------------------------------------------------------------------------

TracesArgument = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Traces, directories, patterns; - for a list on stdin."),
]
NewDatasetOption = Annotated[
    str, typer.Option("-o", "--output", metavar="DIR", help="The dataset: a directory or an fsspec URL.")
]
BulkPoliciesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy", metavar="auto|NAME|FILE.toml", help="Policy, default auto; repeatable: read once."
    ),
]
BulkExpectOption = Annotated[
    str | None,
    typer.Option(
        "--expect",
        metavar="recorded|none",
        help="What to compare with. Default: golden files beside traces, else the recorded outcomes.",
    ),
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, metavar="N", help="Processes. Default: all cores.")
]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="For all processes: 4G. Default: 4/5 of what is free."),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster: tcp://HOST:PORT."),
]
DatasetArgument = Annotated[str, typer.Argument(metavar="DIR", help="A dataset of replay bulk.")]
SqlArgument = Annotated[str, typer.Argument(metavar="SQL", help="Tables: runs, outcomes, windows, flushes.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
AnswerOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write Parquet; ends in .parquet.")
]
