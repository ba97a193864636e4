"""The command line: options in, one call, print, exit code.

Everything heavy is imported inside the commands, so that ``replay --help`` is quick.
"""

from __future__ import annotations

import typer

from replay.cli.datasets import bulk, query
from replay.cli.golden_files import check, expect
from replay.cli.runs import compare, review, run
from replay.cli.setup import policies, warmup
from replay.cli.traces import info, parse, synth

app = typer.Typer(
    name="replay",
    help="Replay KVM MMU tracepoints and simulate eager page splitting of the shadow MMU.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (run, compare, review, parse, info, expect, check, synth, warmup, policies, bulk, query):
    app.command()(command)
