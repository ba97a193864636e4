"""Synthetic traces: a declarative scenario becomes the text that KVM's tracepoints would have printed."""

from __future__ import annotations

import os

__all__ = ["write_trace"]


def write_trace(
    scenario_path: str | os.PathLike[str], output_path: str | os.PathLike[str], seed: int = 0
) -> None:
    """Write the trace of a scenario (TOML) to ``output_path``, ``-`` for standard output.

    The same scenario and seed give the same bytes; ``seed`` decides random orders and accesses.
    The file appears under its name when it is complete.  ``InputError`` names file and line of
    what is wrong with a scenario, ``OutputError`` says why the trace cannot be written.
    """
    from replay.synth.scenario import load_scenario
    from replay.synth.timeline import Timeline
    from replay.synth.write import open_body, save

    scenario = load_scenario(scenario_path)
    with open_body() as body:
        timeline = Timeline(scenario, body.fileno(), seed)
        timeline.play()
        save(body, timeline.lines, timeline.cpus, output_path)
