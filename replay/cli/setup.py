"""The commands about replay itself: ``warmup`` and ``policies``."""

from __future__ import annotations

from replay.cli.options import (
    JsonOption,
    QuietOption,
)
from replay.cli.show import show_json, show_line, standard_output


def warmup(quiet: QuietOption = False) -> None:
    """Compile all kernels and store them, so that no later command has to compile.

    Exit code 0, even if there was nothing to do. 2: they cannot be stored.
    """
    from replay.warmup import warm_up

    done = warm_up()
    if not quiet:
        for word, names in (("compiled", done.compiled), ("found", done.found)):
            print(f"{word}: {', '.join(names) or 'none'}")
    show_line(f"stored in: {done.directory}", quiet)


def policies(
    as_json: JsonOption = False,
) -> None:
    """List the policies and their knobs."""
    from replay.policy import DESCRIPTIONS, PRESETS, policies_document

    if as_json:
        show_json(policies_document())
    else:
        from replay.report.console import print_policies

        print_policies(standard_output(), PRESETS.values(), DESCRIPTIONS)
