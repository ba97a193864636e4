"""The options and arguments that commands share, each defined once.

An option that only one command has is defined with that command.
"""

from __future__ import annotations

from typing import Annotated

import typer

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
